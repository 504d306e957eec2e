#!/usr/bin/env python3
"""Checks that code includes only what lies below it.

usage: include_direction.py [REPOSITORY]

The order of engine's folders is that of its CMakeLists.txt; above engine stand server and client,
which share the translation of messages alone. Prints each include that points upwards.
"""
import pathlib
import re
import subprocess
import sys

# What the command line shares with the server.
SHARED_BY_CLIENT = {
    "server/request_translation.h",
    "server/response_translation.h",
    "server/status.h",
}


def engine_order(root):
    text = (root / "engine/CMakeLists.txt").read_text()
    return re.findall(r"add_subdirectory\((\w+)\)", text)


def may_include(source, header, order):
    """Whether the file `source` may include the project's header `header`."""
    parts, target = source.split("/"), header.split("/")
    if target[0] == "engine":
        if parts[0] != "engine":
            return True
        return order.index(target[1]) <= order.index(parts[1])
    if parts[0] == target[0]:
        return True
    return parts[0] == "client" and header in SHARED_BY_CLIENT


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    order = engine_order(root)
    patterns = [f"{folder}/*.{suffix}" for folder in ("engine", "server", "client")
                for suffix in ("h", "cc", "cu", "cuh")]
    files = subprocess.run(["git", "-C", root, "ls-files", *patterns], check=True,
                           capture_output=True, text=True).stdout.split()
    assert len(files) > 100, "expected the project's sources"
    num_upwards = 0
    for source in files:
        for number, line in enumerate((root / source).read_text().splitlines(), 1):
            include = re.match(r'#include "((?:engine|server|client|tests)/[^"]+)"', line)
            if include and not may_include(source, include[1], order):
                print(f"{source}:{number}: {include[1]} lies above")
                num_upwards += 1
    return 1 if num_upwards else 0


if __name__ == "__main__":
    sys.exit(main())
