#!/usr/bin/env python3
"""Writes docs/flags.md out of what the programs say under --help.

  docs/list_flags.py BIN_DIR            writes it
  docs/list_flags.py BIN_DIR --check    exit code 1 when it is not what the programs say
"""

import argparse
import pathlib
import re
import subprocess
import sys

PAGE = pathlib.Path(__file__).with_name("flags.md")
INTRODUCTION = """\
# Options of the programs

Written by `docs/list_flags.py build/bin` out of `--help`; a test compares them. What stands behind `=` is
the default, behind `:` what is taken; `...` may be repeated.
"""


class Help:
    """What a command says of itself."""

    def __init__(self, text: str) -> None:
        self.description = text.partition("\nUsage:")[0].strip()
        self.options: list[tuple[str, str, str]] = []  # names, value, description
        self.subcommands: list[str] = []
        section = ""
        for line in text.splitlines():
            if not line.startswith("  "):
                section = line if line.endswith(":") else ""
            elif section == "Subcommands:" and (match := re.match(r"  (\S+)", line)):
                self.subcommands.append(match.group(1))
            elif section and not re.match("Examples?:", section):
                self._add(line)

    def _add(self, line: str) -> None:
        match = re.match(r"  (\S+)((?: \S+)*)(?:\s{2,}(.*))?$", line)
        if match is None:  # goes on with the description of the line before
            names, value, description = self.options.pop()
            self.options.append((names, value, f"{description} {line.strip()}".strip()))
            return
        names, value, description = match.group(1), match.group(2).strip(), match.group(3) or ""
        self.options.append((names, value, description))

    def flags(self) -> set[str]:
        return {
            name for names, _, _ in self.options for name in names.split(",") if name[0] == "-"
        }


def read_help(command: list[str]) -> Help | None:
    """None: the program is not here (the trainer is built where there is LibTorch)."""
    try:
        result = subprocess.run([*command, "--help"], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return Help(result.stdout) if result.returncode == 0 else None


def read_all(bin_dir: pathlib.Path) -> dict[str, Help]:
    """By command: "ultrasketchd", "ultrasketch", "ultrasketch bench kernel", ..."""
    found: dict[str, Help] = {}

    def read(name: str, command: list[str]) -> None:
        if (found_help := read_help(command)) is None:
            return
        found[name] = found_help
        for subcommand in found_help.subcommands:
            read(f"{name} {subcommand}", [*command, subcommand])

    for program in ("ultrasketchd", "ultrasketch"):
        read(program, [str(bin_dir / program)])
    return found


def section_of(name: str, command: Help) -> str:
    options = [option for option in command.options if option[0] != "-h,--help"]
    if not options or name == "ultrasketch":
        return ""
    lines = [f"## {name}", "", command.description.replace("\n", " "), "", "| | | |", "|---|---|---|"]
    for names, value, description in options:
        cells = [f"`{names}`", f"`{value}`" if value else "", description]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def sections(page: str) -> dict[str, str]:
    parts = re.split(r"^(?=## )", page, flags=re.MULTILINE)
    return {part.partition("\n")[0].removeprefix("## "): part.strip() for part in parts[1:]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bin_dir", type=pathlib.Path)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    commands = read_all(arguments.bin_dir)
    if "ultrasketch" not in commands or "ultrasketchd" not in commands:
        print(f"expected ultrasketch and ultrasketchd in {arguments.bin_dir}", file=sys.stderr)
        return 1
    written = {name: section_of(name, command) for name, command in commands.items()}
    there = sections(PAGE.read_text(encoding="utf-8")) if PAGE.exists() else {}
    # A trainer that is not built here was somewhere: what is known of it stays.
    absent = "ultrasketch finetune"
    if absent not in written and absent in there:
        written[absent] = there[absent] + "\n"
    page = "\n".join([INTRODUCTION, *filter(None, written.values())])
    if not arguments.check:
        PAGE.write_text(page, encoding="utf-8")
        return 0
    expected = sections(page)
    wrong = sorted(
        name for name in expected.keys() | there.keys() if expected.get(name) != there.get(name)
    )
    for name in wrong:
        print(f"docs/flags.md: `{name}` is not what its --help says", file=sys.stderr)
    if wrong:
        print("run docs/list_flags.py build/bin", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
