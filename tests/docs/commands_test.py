#!/usr/bin/env python3
"""The commands of the pages for people, run as they stand, as commands.toml says.

  commands_test.py BUILD_DIR [PAGE]...     all pages, or these; -v prints each command
"""

import contextlib
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import typing
import unittest

sys.dont_write_bytecode = True

import pages
from pages import REPOSITORY, Command

TABLE = pathlib.Path(__file__).with_name("commands.toml")
START_SECONDS = 120
COMMAND_SECONDS = 300
# Of these a page's folder has copies; the rest of the repository is linked.
COPIED = ("deploy", "docs")
# Say on which ports they listen; by the option, what is listened on without it.
LISTENERS = {
    "ultrasketchd": {"--listen": "127.0.0.1:8001", "--metrics-listen": "127.0.0.1:8002"},
    "prometheus": {"--web.listen-address": "0.0.0.0:9090"},
}
LISTENING = {
    "ultrasketchd": re.compile(r"event=serving listen=\S+:(\d+) metrics=\S+:(\d+)\s"),
    "prometheus": re.compile(r'msg="Listening on" address=\S+:(\d+)\n'),
}


class Failure(Exception):
    pass


class Table:
    """What commands.toml says, and which of its lines were of use."""

    def __init__(self, text: str) -> None:
        table = tomllib.loads(text)
        self.setup: str = table["setup"]
        self.setups: dict[str, str] = table["setups"]
        self.servers: dict[str, str] = table["servers"]
        self.elsewhere = [REPOSITORY / entry["test"] for entry in table["elsewhere"]]
        self._input: dict[str, str] = table["input"]
        self._added: dict[str, str] = table["added"]
        self._replaced = [(old, new) for part in table["replaced"].values() for old, new in part]
        self._not_run = [
            (page, prefix)
            for entry in [*table["needs"], *table["elsewhere"]]
            for page, prefix in entry["commands"]
        ]
        self._used: set[typing.Any] = set()

    def is_run(self, command: Command) -> bool:
        found = [
            entry
            for entry in self._not_run
            if entry[0] == command.page and f"{command.text} ".startswith(f"{entry[1]} ")
        ]
        self._used.update(found)
        return not found

    def rewrite(self, text: str) -> str:
        for old, new in self._replaced:
            if old in text:
                self._used.add(old)
                text = text.replace(old, new)
        for prefix, options in self._added.items():
            program, *subcommands = prefix.split()
            pattern = r"(?:\S*/)?" + r"\s+".join(map(re.escape, [program, *subcommands])) + r"(?=\s)"
            if found := re.search(rf"(?:^|(?<=\s)){pattern}", text):
                self._used.add(prefix)
                words = options.split(" --")
                there = [word for word in words if f"{_flag(word)} " in f"{text} "]
                kept = " --".join(word for word in words if word not in there)
                text = f"{text[: found.end()]} {_dashed(kept)}{text[found.end() :]}"
        return text

    def input_of(self, text: str) -> str:
        for prefix, given in self._input.items():
            if text.startswith(prefix):
                self._used.add(prefix)
                return given
        return ""

    def unused(self) -> list[str]:
        lines = [*self._not_run, *self._added, *self._input, *(old for old, _ in self._replaced)]
        return [str(line) for line in lines if line not in self._used]


def _flag(word: str) -> str:
    name = word.split()[0]
    return name if name.startswith("-") else f"--{name}"


def _dashed(options: str) -> str:
    return options if options.startswith("-") or not options else f"--{options}"


class Folder(contextlib.ExitStack):
    """A page's copy of the repository, with the servers that the page starts."""

    def __init__(self, page: str, build: pathlib.Path, table: Table) -> None:
        super().__init__()
        self._page, self._build, self._table = page, build, table
        self._ports: dict[int, int] = {}  # of the page: of this folder's servers
        self._path = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
        for entry in REPOSITORY.iterdir():
            if entry.name in COPIED:
                # Weights stay where they are.
                shutil.copytree(
                    entry,
                    self._path / entry.name,
                    copy_function=lambda source, copy: os.symlink(source, copy)
                    if source.endswith(".safetensors")
                    else shutil.copy(source, copy),
                )
            elif not entry.name.startswith((".", "build")):
                (self._path / entry.name).symlink_to(entry)
        (self._path / "build").symlink_to(build)
        self._environment = {
            **os.environ,
            "PATH": f"{build / 'bin'}:{os.environ['PATH']}",
            "HOME": str(self._path),
            "no_proxy": "localhost,127.0.0.1",
        }
        self._run(f"set -e\n{table.setup}{table.setups.get(page, '')}", "")

    def run(self, command: Command) -> None:
        text = self._table.rewrite(command.text)
        if not self._ports and re.search(r"\blocalhost:\d", text):
            self._start_listener(f"ultrasketchd {self._table.servers[self._page]} --threads 1")
        program = pathlib.PurePath(shlex.split(text)[0]).name
        if program in LISTENERS:
            self._start_listener(text)
            return
        if command.in_background:
            raise Failure("it would run on in the background, and its name is not in LISTENERS")
        if text.startswith("ultrasketch finetune") and not (
            self._build / "bin/ultrasketch-finetune"
        ).exists():
            self._stand_in_for_training(text)
            return
        self._run("set -o pipefail\n" + self._with_real_ports(text), self._table.input_of(text))

    def _run(self, text: str, given: str) -> None:
        try:
            result = subprocess.run(
                ["bash", "-c", text],
                cwd=self._path,
                env=self._environment,
                input=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=COMMAND_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise Failure(f"{text}\nstill runs after {COMMAND_SECONDS} s") from None
        if result.returncode != 0:
            raise Failure(f"{text}\nexit code {result.returncode}\n{result.stdout[-3000:]}")

    def _start_listener(self, text: str) -> None:
        """Starts it on free ports, which the page's stand for from now on."""
        program = pathlib.PurePath(shlex.split(text)[0]).name
        ports = []
        for option, default in LISTENERS[program].items():
            pattern = re.escape(option) + r"[ =](\S+):(\d+)"
            given = re.search(pattern, text)
            ports.append(int((given[2] if given else default.rpartition(":")[2])))
            text = re.sub(pattern, "", text) + f" {option}=127.0.0.1:0"
        log = self._path / f"tmp/{program}-{ports[0]}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {self._with_real_ports(text)}"],
                cwd=self._path,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.callback(_stop, process)
        deadline = time.monotonic() + START_SECONDS
        while not (found := LISTENING[program].search(log.read_text())):
            if process.poll() is not None or time.monotonic() > deadline:
                raise Failure(f"{text}\ndid not serve:\n{log.read_text()[-3000:]}")
            time.sleep(0.05)
        self._ports.update(zip(ports, map(int, found.groups())))
        targets = self._path / "deploy/prometheus/targets.yml"
        targets.write_text(self._with_real_ports(targets.read_text()))
        if program == "prometheus":
            time.sleep(3)  # a few scrapes

    def _with_real_ports(self, text: str) -> str:
        return re.sub(
            r"\b(localhost|127\.0\.0\.1):(\d+)\b",
            lambda found: f"{found[1]}:{self._ports.get(int(found[2]), found[2])}",
            text,
        )

    def _stand_in_for_training(self, text: str) -> None:
        """Where there is no LibTorch the untrained model is the result."""
        words = shlex.split(text)
        student, out = (words[words.index(flag) + 1] for flag in ("--student", "--out"))
        shutil.copytree(self._path / student, self._path / out)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def failures_of(commands: list[Command], build: pathlib.Path, table: Table) -> list[str]:
    """Of a page's commands, one after the other; the first that fails ends it."""
    commands = [command for command in commands if table.is_run(command)]
    if not commands:
        return []
    try:
        with Folder(commands[0].page, build, table) as folder:
            for command in commands:
                begin = time.monotonic()
                try:
                    folder.run(command)
                except (Failure, KeyError, ValueError) as error:
                    return [f"{command}\n{error}"]
                if verbose:
                    print(f"{time.monotonic() - begin:6.1f} s  {command}", file=sys.stderr)
    except Failure as error:
        return [f"{commands[0].page}: {error}"]
    return []


class CommandsTest(unittest.TestCase):
    def test_the_commands_of_the_pages_run(self) -> None:
        table = Table(TABLE.read_text(encoding="utf-8"))
        for page in pages.pages():
            name = str(page.relative_to(REPOSITORY))
            if chosen and name not in chosen:
                continue
            with self.subTest(page=name):
                self.assertEqual(failures_of(pages.commands(page), build, table), [])
        if not chosen:
            self.assertEqual(table.unused(), [], "lines of commands.toml that no page needs")
        for test in table.elsewhere:
            self.assertTrue(test.exists(), test)

    def test_a_command_that_is_wrong_is_found(self) -> None:
        table = Table(TABLE.read_text(encoding="utf-8"))
        for text, words in (
            ("ultrasketch inspect deploy/models/classics-6m --no-such-option", "--no-such-option"),
            ("ultrasketch inspect no-such-model", "no-such-model"),
            ("ultrasketch no-such-command", "no-such-command"),
            ("ultrasketchd --no-such-option", "--no-such-option"),
            ("no-such-program --help", "no-such-program"),
            ("ultrasketch health --target localhost:8001", "PAGE.md"),  # no server is declared
            ("sleep 60 &", "in the background"),
        ):
            with self.subTest(text=text):
                commands = [
                    command
                    for block in pages.blocks_of("PAGE.md", f"Text.\n\n    {text}\n")
                    for command in pages.commands_of(block)
                ]
                (failure,) = failures_of(commands, build, table)
                self.assertIn(words, failure)


class PagesTest(unittest.TestCase):
    def commands(self, text: str) -> list[tuple[str, bool]]:
        found = [pages.commands_of(block) for block in pages.blocks_of("PAGE.md", text)]
        return [(each.text, each.in_background) for block in found for each in block]

    def test_finds_commands(self) -> None:
        self.assertEqual(
            self.commands(
                "Text.\n\n    one --a \\\n      --b   # a comment\n    two 'x && y' && three &\n\n    four | five\n"
            ),
            [
                ("one --a --b", False),
                ("two 'x && y'", False),
                ("three", True),
                ("four | five", False),
            ],
        )

    def test_finds_none_in_other_languages_and_in_text(self) -> None:
        self.assertEqual(self.commands("```python\nimport x\n```\n\n```\none\n```\n"), [("one", False)])
        self.assertEqual(self.commands("- a list\n    that goes on\n"), [])


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    verbose = "-v" in sys.argv
    build, *chosen = [argument for argument in sys.argv[1:] if argument != "-v"]
    build = pathlib.Path(build).resolve()
    unittest.main(argv=sys.argv[:1])
