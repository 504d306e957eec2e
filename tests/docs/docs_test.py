#!/usr/bin/env python3
"""Links of the pages for people lead somewhere, and options that they name exist.

  docs_test.py BIN_DIR
"""

import pathlib
import re
import shlex
import sys
import unittest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "docs"))
sys.dont_write_bytecode = True

import list_flags  # noqa: E402
import pages  # noqa: E402

BIN_DIR = pathlib.Path(sys.argv.pop(1) if len(sys.argv) > 1 else REPOSITORY / "build/bin")

# Of other programs that the pages name.
FOREIGN_OPTIONS = {
    "--build-arg": "docker",
    "--component": "cmake",
    "--prebuilt": "docker/test_images.sh",
    "--read-only": "docker",
    "--set": "ncu",
    "--strict": "mypy",
    "--web": "prometheus",
}

FOREIGN_MESSAGES = [
    "Address already in use",  # Linux
    "Compression algorithm",  # gRPC, with "is disabled"
    "Connection refused",
    "Received message larger than max",  # gRPC
    "Socket closed",
    "connections to all backends failing",
    "failed to connect to all addresses",
    "is disabled",
    "received initial metadata size exceeds limit",  # gRPC
    "too_many_pings",
    "VersionError",  # protobuf
    "RuntimeError",  # grpcio
]


def without_code(text: str) -> str:
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^    .*$", "", text, flags=re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "", text)


def anchors(page: pathlib.Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in plain}


class DocsTest(unittest.TestCase):
    def test_links_lead_somewhere(self) -> None:
        for page in pages.pages():
            text = without_code(page.read_text(encoding="utf-8"))
            for target in re.findall(r"\]\(([^)\s]+)\)", text):
                if re.match(r"[a-z]+:", target):
                    continue
                path, _, anchor = target.partition("#")
                linked = (page.parent / path).resolve() if path else page
                with self.subTest(page=str(page.relative_to(REPOSITORY)), target=target):
                    self.assertTrue(linked.exists(), "there is no such file")
                    self.assertTrue(linked.is_relative_to(REPOSITORY), "leaves the repository")
                    if anchor and linked.suffix == ".md":
                        self.assertIn(anchor, anchors(linked))

    def test_every_page_is_in_the_index(self) -> None:
        index = (REPOSITORY / "docs/README.md").read_text(encoding="utf-8")
        for page in sorted((REPOSITORY / "docs").glob("*.md")):
            if page.name != "README.md":
                self.assertIn(f"]({page.name})", index)

    def test_options_of_commands_exist(self) -> None:
        commands = list_flags.read_all(BIN_DIR)
        for page in pages.pages():
            text = page.read_text(encoding="utf-8")
            inline = [code for code in re.findall(r"`([^`\n]+)`", text) if "ultrasketch" in code]
            for line in [*(command.text for command in pages.commands(page)), *inline]:
                self._check_command(commands, str(page.relative_to(REPOSITORY)), line)

    def test_options_that_text_names_exist(self) -> None:
        commands = list_flags.read_all(BIN_DIR)
        known = {flag for command in commands.values() for flag in command.flags()}
        if "ultrasketch finetune" not in commands:  # the trainer is not built here
            known |= set(re.findall(r"^\| `(--[\w-]+)", list_flags.PAGE.read_text(), re.MULTILINE))
        for page in pages.pages():
            text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
            for code in re.findall(r"`(--[^`\n]*)`", text):
                flag = re.match(r"--[\w-]*", code)
                assert flag is not None
                with self.subTest(page=str(page.relative_to(REPOSITORY)), code=code):
                    is_known = flag.group() in known or flag.group() in FOREIGN_OPTIONS
                    self.assertTrue(is_known, "no program has this option")

    def test_messages_of_the_troubleshooting_page_are_those_of_the_code(self) -> None:
        code = "\n".join(
            path.read_text(encoding="utf-8")
            for folder in ("client", "engine", "server")
            for path in sorted((REPOSITORY / folder).rglob("*"))
            if path.suffix in (".cc", ".h", ".cu")
        )
        code = re.sub(r'"\s*\n\s*"', "", code).replace('\\"', '"')
        page = (REPOSITORY / "docs/troubleshooting.md").read_text(encoding="utf-8")
        tables = re.findall(r"^\| (?:Message|Code)[^\n]*\n\|[-|]*\n((?:\|.*\n)+)", page, re.MULTILINE)
        self.assertEqual(len(tables), 3)
        for row in "".join(tables).splitlines():
            for message in re.findall(r"`([^`]+)`", row.split(" | ")[0]):
                for words in filter(None, (part.strip(" .") for part in message.split("..."))):
                    if words not in FOREIGN_MESSAGES:
                        with self.subTest(row=row):
                            self.assertTrue(words in code, words)

    def _check_command(
        self, commands: dict[str, list_flags.Help], page: str, line: str
    ) -> None:
        try:
            words = shlex.split(line)
        except ValueError:
            return  # a line of something else
        names = [pathlib.PurePath(word).name for word in words]
        for program in ("ultrasketchd", "ultrasketch"):
            if program not in names:
                continue
            rest = words[names.index(program) + 1 :]
            name = program
            while rest and f"{name} {rest[0]}" in commands:
                name = f"{name} {rest.pop(0)}"
            if name == "ultrasketch" and rest[:1] == ["finetune"]:  # as above
                return
            for word in rest:
                if re.match(r"--\w", word):
                    with self.subTest(page=page, command=line.strip()):
                        is_known = word.partition("=")[0] in commands[name].flags()
                        self.assertTrue(is_known, f"{name} has no option {word}")


if __name__ == "__main__":
    unittest.main()
