#!/usr/bin/env python3
"""Writes the tables of docs/gpu.md out of docs/gpu.json, between their marks. Standard library only.

  docs/table_gpu.py            writes them
  docs/table_gpu.py --check    exit code 1 when the page has others

In the JSON, `int8_tables`, `bfloat16_tables` and `contexts` hold what `ultrasketch bench step --json`
wrote, `products` what `ultrasketch bench kernel --json` did.
"""

import json
import pathlib
import re
import sys

FOLDER = pathlib.Path(__file__).parent
PAGE = FOLDER / "gpu.md"
SITES = ("attention_input", "attention_output", "mlp_input", "mlp_output")


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(str, cells))} |\n" for cells in lines).replace("| --- ", "|---").replace("|--- |", "|---|")


def label(step):
    kind, count = step.split("_")
    count = f"{int(count):,}"
    return f"prompt, {count} tokens" if kind == "prefill" else f"decode, {count}"


def milliseconds(value):
    return "" if value is None else f"{value:.3f}"


def ratio(value):
    return "" if value is None else f"{value:.2f}"


def steps(results):
    rows = []
    bfloat16 = {model["preset"]: model["steps"] for model in results["bfloat16_tables"]}
    for model in results["int8_tables"]:
        for step, other in zip(model["steps"], bfloat16[model["preset"]]):
            assert step["step"] == other["step"]
            rows.append([
                model["preset"], label(step["step"]), milliseconds(step["milliseconds"]),
                milliseconds(step["dense_milliseconds"]), ratio(step["ratio_to_dense"]),
                milliseconds(step["dense_cublas_milliseconds"]), ratio(step["ratio_to_dense_cublas"]),
                milliseconds(other["milliseconds"]),
                f"{ratio(other['ratio_to_dense'])}, {ratio(other['ratio_to_dense_cublas'])}"])
    return table(["model", "step", "`fold`", "dense", "ratio", "with cublasLt", "ratio",
                  "`fold`, bfloat16 tables", "ratios"], rows)


def contexts(results):
    times = {}
    for run in results["contexts"]:
        for model in run["models"]:
            for step in model["steps"]:
                context = step["cached_tokens"] + step["new_tokens"]
                key = (model["preset"], context, step["step"].startswith("prefill"),
                       int(step["step"].split("_")[1]), step["step"])
                times.setdefault(key, {})[run["column"]] = step
    rows = []
    for (preset, context, is_prompt, _, name), by_cache in sorted(times.items()):
        of = {cache: by_cache.get(cache, {}) for cache in ("fp16", "int8")}
        int8 = of["int8"]
        rows.append([
            preset, f"{context:,}", "prompt" if is_prompt else label(name),
            *(milliseconds(of[cache].get("milliseconds")) for cache in of),
            *(milliseconds(of[cache].get("dense_milliseconds")) for cache in of),
            milliseconds(of["fp16"].get("dense_cublas_milliseconds")),
            f"{ratio(int8['ratio_to_dense'])}, {ratio(int8['ratio_to_dense_cublas'])}" if int8 else ""])
    return table(["model", "context", "step", "`fold`", "`fold`, int8 KV", "dense", "dense, int8 KV",
                  "with cublasLt", "ratios of int8 KV"], rows)


def sites(row):
    return [f"{row[site]['microseconds']:.1f} ({row[site]['ratio_to_cublas']:.2f})" for site in SITES]


def fold(results):
    rows = [[row["preset"], f"{row['tokens']:,}", *sites(row), f"{row['microseconds']:.1f}",
             f"{row['cublas_microseconds']:.1f}", ratio(row["ratio_to_cublas"]),
             f"{row['terabytes_per_second']:.2f} TB/s, {row['share_of_copy']:.0%} of a copy",
             f"{row['teraflops']:.0f}, {row['share_of_matrix_peak']:.0%}"]
            for row in results["products"]["fold"]]
    return table(["model", "tokens", *SITES, "all sites", "cublasLt bf16", "ratio", "bytes touched", "TFLOP/s"], rows)


def dense(results):
    rows = [[row["preset"], f"{row['tokens']:,}", *sites(row), f"{row['microseconds']:.1f}",
             f"{row['cublas_microseconds']:.1f}", ratio(row["ratio_to_cublas"]),
             "" if row["mma_sync_microseconds"] is None else f"{row['mma_sync_microseconds']:.0f}"]
            for row in results["products"]["dense"]]
    return table(["model", "tokens", *SITES, "all sites", "cublasLt bf16", "ratio", "by `mma.sync`"], rows)


def absmaxmin(results):
    rows = [[row["preset"], f"{row['tokens']:,}", f"{row['microseconds']:.1f} us", f"{row['ratio_to_naive']:.1f}",
             ratio(row["ratio_to_decoded"]), ratio(row["ratio_to_cublas"])]
            for row in results["products"]["absmaxmin"]]
    return table(["model", "tokens", "fused", "times naive", "times decoded", "times cublasLt bf16"], rows)


TABLES = {"steps": steps, "contexts": contexts, "fold": fold, "dense": dense, "absmaxmin": absmaxmin}


def main():
    results = json.loads((FOLDER / "gpu.json").read_text())
    page = written = PAGE.read_text(encoding="utf-8")
    for name, make in TABLES.items():
        marks = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
        assert all(page.count(mark) == 1 for mark in marks), f"{PAGE}: expected one pair of marks of {name}"
        written = re.sub(re.escape(marks[0]) + ".*?" + re.escape(marks[1]),
                         lambda _, text=marks[0] + make(results) + marks[1]: text, written, flags=re.DOTALL)
    if sys.argv[1:] != ["--check"]:
        PAGE.write_text(written, encoding="utf-8")
    elif written != page:
        print("docs/gpu.md has other tables than docs/gpu.json: run docs/table_gpu.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
