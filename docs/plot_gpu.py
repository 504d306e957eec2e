#!/usr/bin/env python3
"""Draws docs/gpu.svg from docs/gpu.json, which holds what `ultrasketch bench step --json` wrote, with
int8 and with bfloat16 tables. Standard library only.

usage: plot_gpu.py [DOCS_FOLDER]
"""

import json
import pathlib
import sys

WIDTH, LEFT, RIGHT, TOP = 800, 210, 70, 50
BAR, GAP = 14, 14
# Okabe and Ito's palette: told apart by colour-blind readers too.
SERIES = [("ratio_to_dense", "the engine's own uncompressed step", "#0072b2"),
          ("ratio_to_dense_cublas", "one with cublasLt's products", "#e69f00")]
STEPS = {"decode_1": "decode, 1 sequence", "decode_8": "decode, 8", "decode_64": "decode, 64",
         "prefill_2048": "prefill, 2,048"}
STYLE = ("text{fill:#333}.grid{stroke:#ccc;stroke-width:1}.page{fill:#fff}.one{stroke:#777}"
         "@media(prefers-color-scheme:dark){text{fill:#ddd}.grid{stroke:#444}.page{fill:#14171a}}")


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent)
    results = json.loads((folder / "gpu.json").read_text())
    rows = [(model["preset"], step) for model in results["int8_tables"] for step in model["steps"]]
    most = max(step[key] for _, step in rows for key, _, _ in SERIES)
    height = TOP + len(rows) * (2 * BAR + GAP) + 40
    scale = (WIDTH - LEFT - RIGHT) / most
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
             'font-family="sans-serif" font-size="13">', f"<style>{STYLE}</style>",
             f'<rect class="page" width="{WIDTH}" height="{height}"/>']
    for index, (_, label, colour) in enumerate(SERIES):
        x = LEFT + index * 270
        parts.append(f'<rect x="{x}" y="14" width="{BAR}" height="{BAR}" fill="{colour}"/>')
        parts.append(f'<text x="{x + BAR + 6}" y="25">{label}</text>')
    for tick in range(int(most) + 1):
        x = LEFT + tick * scale
        kind = "one" if tick == 1 else "grid"
        parts.append(f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 8}" '
                     f'y2="{height - 36}"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - 20}" text-anchor="middle">{tick}</text>')
    for index, (preset, step) in enumerate(rows):
        y = TOP + index * (2 * BAR + GAP)
        parts.append(f'<text x="{LEFT - 8}" y="{y + BAR - 2}" text-anchor="end">{preset}</text>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 2 * BAR - 2}" text-anchor="end">'
                     f'{STEPS[step["step"]]}</text>')
        for bar, (key, _, colour) in enumerate(SERIES):
            length = step[key] * scale
            top = y + bar * BAR
            parts.append(f'<rect x="{LEFT}" y="{top}" width="{length:.1f}" height="{BAR - 1}" '
                         f'fill="{colour}"/>')
            parts.append(f'<text x="{LEFT + length + 5:.1f}" y="{top + BAR - 3}">'
                         f"{step[key]:.2f}</text>")
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{height - 4}" '
                 f'text-anchor="middle">times as fast, {results["device"]}</text>')
    parts.append("</svg>")
    (folder / "gpu.svg").write_text("\n".join(parts) + "\n")


main()
