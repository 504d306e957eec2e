"""The pages for people, and the code in them.

An indented block has commands; so has a fence of no language, or of `sh`. A fence of another language
(`python`, `json`, `text` ...) has none.
"""

import pathlib
import re
import typing

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


class Block(typing.NamedTuple):
    page: str  # relative to the repository
    line: int  # of the code's first line
    language: str  # "" for an indented block
    text: str


class Command(typing.NamedTuple):
    page: str
    line: int
    text: str  # on one line, without comments
    in_background: bool

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


def pages() -> list[pathlib.Path]:
    folders = ("client", "deploy", "docker", "docs", "engine")
    found = [page for folder in folders for page in (REPOSITORY / folder).rglob("*.md")]
    return [REPOSITORY / "README.md", *sorted(found)]


def blocks(page: pathlib.Path) -> list[Block]:
    name = str(page.relative_to(REPOSITORY))
    return blocks_of(name, page.read_text(encoding="utf-8"))


def blocks_of(page: str, text: str) -> list[Block]:
    lines = text.splitlines()
    found = []
    number = 0
    while number < len(lines):
        start = number
        if fence := re.match(r"```(\w*)$", lines[number]):
            number += 1
            while lines[number] != "```":
                number += 1
            found.append(Block(page, start + 2, fence[1], "\n".join(lines[start + 1 : number])))
        elif lines[number].startswith("    ") and (number == 0 or not lines[number - 1].strip()):
            while number + 1 < len(lines) and lines[number + 1].startswith("    "):
                number += 1
            code = "\n".join(line[4:] for line in lines[start : number + 1])
            found.append(Block(page, start + 1, "", code))
        number += 1
    return found


_SHELL = re.compile(
    r"""(?P<quoted>'[^']*'|"(?:\\.|[^"])*"|\$\([^()]*\)|\\.)"""
    r"|(?P<comment>(?:^|(?<=\s))\#.*)|(?P<end>&&|&|;)|(?P<plain>.)",
    re.VERBOSE,
)


def commands_of(block: Block) -> list[Command]:
    """One for each command of a list (`a && b`, `a & b`); pipes and redirections stay in theirs."""
    if block.language not in ("", "sh"):
        return []
    found = []
    lines = iter(enumerate(block.text.splitlines(), block.line))
    for number, line in lines:
        while line.endswith("\\"):
            line = line[:-1].rstrip() + " " + next(lines)[1].strip()
        text = ""
        for token in _SHELL.finditer(line + ";"):
            if token["comment"]:
                break
            if not token["end"]:
                text += token[0]
                continue
            if text.strip():
                found.append(Command(block.page, number, text.strip(), token["end"] == "&"))
            text = ""
        if text.strip():  # a comment follows
            found.append(Command(block.page, number, text.strip(), False))
    return found


def commands(page: pathlib.Path) -> list[Command]:
    return [command for block in blocks(page) for command in commands_of(block)]
