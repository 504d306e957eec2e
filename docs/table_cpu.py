#!/usr/bin/env python3
"""Prints the tables of docs/cpu.md from docs/cpu.json: what `ultrasketch bench kernel --device cpu
--json` and `ultrasketch bench step --device cpu --json` wrote. Standard library only.

usage: table_cpu.py [DOCS_FOLDER]
"""

import json
import pathlib
import sys


def print_table(header, rows):
    print("| " + " | ".join(header) + " |")
    print("|---" * len(header) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent)
    runs = json.loads((folder / "cpu.json").read_text())
    rows = []
    for run in runs["kernels"]:
        for kernel in run["measurements"]:
            if kernel["site"] not in ("all sites", "output_head"):
                continue
            rows.append([
                run["codec"], kernel["site"], str(kernel["tokens"]),
                f"{kernel['least_microseconds']:,.0f}",
                f"{kernel['least_microseconds'] / kernel['tokens']:,.1f}",
                f"{kernel['least_dense_microseconds']:,.0f}",
                f"{kernel['least_dense_microseconds'] / kernel['least_microseconds']:.1f}",
                f"{100 * kernel['fraction_of_read_bandwidth']:.0f}%",
            ])
    print_table(["codec", "matrix", "tokens", "us", "us a token", "bf16 us", "x bf16", "of read"],
                rows)
    rows = []
    for run in runs["steps"]:
        for model in run["models"]:
            for step in model["steps"]:
                tokens = step["sequences"] * step["new_tokens"]
                rows.append([
                    run["codec"], run["table"], step["step"].replace("_", " "),
                    f"{step['milliseconds']:,.1f}",
                    f"{step['milliseconds'] / tokens:,.2f}",
                    f"{step['dense_milliseconds']:,.1f}",
                    f"{step['ratio_to_dense']:.1f}",
                ])
    print_table(["codec", "head", "step", "ms", "ms a token", "dense, ms", "x dense"],
                rows)


if __name__ == "__main__":
    main()
