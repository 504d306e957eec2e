#!/usr/bin/env python3
"""Prints the table of long contexts in docs/gpu.md from docs/gpu.json, whose `contexts` hold what
`ultrasketch bench step --json` wrote. Standard library only.

usage: table_gpu.py [DOCS_FOLDER]
"""

import json
import pathlib
import sys


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent)
    contexts = json.loads((folder / "gpu.json").read_text())["contexts"]
    columns = ["before", "float", "int8"]
    times = {}
    for run in contexts:
        for model in run["models"]:
            for step in model["steps"]:
                context = step["cached_tokens"] + step["new_tokens"]
                key = (model["preset"], context, step["step"])
                times.setdefault(key, {})[run["column"]] = step
    print("| model | context | step | before | `fold` | `fold`, int8 KV | dense | dense, int8 KV | "
          "with cublasLt | ratios of int8 KV |")
    print("|---" * 10 + "|")
    for (preset, context, name), steps in sorted(times.items(), key=lambda item: (
            item[0][0], item[0][1], item[0][2].startswith("prefill"),
            int(item[0][2].split("_")[1]))):
        kind, count = name.split("_")
        label = "prompt" if kind == "prefill" else f"decode, {count}"
        cells = [f"{steps[column]['milliseconds']:.3f}" if column in steps else ""
                 for column in columns]
        dense = [f"{steps[column]['dense_milliseconds']:.3f}" if column in steps else ""
                 for column in columns[1:]]
        int8 = steps.get("int8")
        cublas = f"{steps['float']['dense_cublas_milliseconds']:.3f}" if "float" in steps else ""
        ratios = (f"{int8['ratio_to_dense']:.2f}, {int8['ratio_to_dense_cublas']:.2f}"
                  if int8 else "")
        print(f"| {preset} | {context:,} | {label} | " + " | ".join(cells + dense) +
              f" | {cublas} | {ratios} |")


if __name__ == "__main__":
    main()
