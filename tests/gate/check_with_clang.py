#!/usr/bin/env python3
"""Compiles sources with clang for its warnings alone, thread-safety analysis among them.

usage: check_with_clang.py BUILD_DIR FOLDER...

BUILD_DIR is configured with clang++ and has its generated headers; FOLDERs are those whose sources
are checked. Prints what clang says, and exits with 1 when it says something.
"""
import concurrent.futures
import json
import os
import pathlib
import shlex
import subprocess
import sys


def check(entry):
    arguments = shlex.split(entry["command"])
    if pathlib.Path(arguments[0]).name == "ccache":
        arguments = arguments[1:]
    output = arguments.index("-o")
    del arguments[output:output + 2]
    run = subprocess.run([*arguments, "-fsyntax-only"], cwd=entry["directory"],
                         capture_output=True, text=True, check=False)
    return run.stderr if run.returncode or run.stderr else ""


def main():
    build, folders = sys.argv[1], sys.argv[2:]
    root = pathlib.Path(__file__).resolve().parents[2]
    entries = [entry for entry in json.loads((pathlib.Path(build) / "compile_commands.json").read_text())
               if any(pathlib.Path(entry["file"]).is_relative_to(root / folder) for folder in folders)]
    if not entries:
        sys.exit(f"no sources of {', '.join(folders)} in {build}/compile_commands.json")
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        messages = [message for message in pool.map(check, entries) if message]
    print("".join(messages), end="", file=sys.stderr)
    print(f"{len(entries)} sources, {len(messages)} with messages")
    return 1 if messages else 0


if __name__ == "__main__":
    sys.exit(main())
