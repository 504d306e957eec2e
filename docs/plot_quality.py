#!/usr/bin/env python3
"""Draws docs/quality.svg and writes the table of docs/quality.md from the JSON of
`ultrasketch bench quality`. Standard library only.

usage: plot_quality.py QUALITY.json [DOCS_FOLDER]
"""

import json
import math
import pathlib
import sys

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 150, 30, 60
# Okabe and Ito's palette: told apart by colour-blind readers too.
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7"]
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


def log_scale(low, high, begin, end):
    span = math.log(high) - math.log(low)
    return lambda value: begin + (math.log(value) - math.log(low)) / span * (end - begin)


def ticks(low, high):
    """1, 2 and 5 times the powers of ten within [low, high]."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    values = [m * 10.0**e for e in range(first, last + 1) for m in (1, 2, 5)]
    return [v for v in values if low * 0.999 <= v <= high * 1.001]


def plot(points):
    compressed = [p for p in points if p["codec"] != "dense" and p["ratio_to_dense"]]
    bits = [p["bits_per_weight_linear"] for p in compressed]
    ratios = [p["ratio_to_dense"] for p in compressed]
    x_low, x_high = min(bits) / 1.3, max(bits) * 1.3
    y_low, y_high = 0.9, max(ratios) * 1.4
    x = log_scale(x_low, x_high, LEFT, WIDTH - RIGHT)
    y = log_scale(y_low, y_high, HEIGHT - BOTTOM, TOP)
    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="13">',
        "<style>text{fill:#333}.grid{stroke:#ccc;stroke-width:1}.page{fill:#fff}"
        "@media(prefers-color-scheme:dark){text{fill:#ddd}.grid{stroke:#444}.page{fill:#14171a}}"
        "</style>",
        f'<rect class="page" width="{WIDTH}" height="{HEIGHT}"/>',
    ]
    for value in ticks(x_low, x_high):
        svg.append(f'<line class="grid" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{TOP}" '
                   f'y2="{HEIGHT - BOTTOM}"/>')
        svg.append(f'<text x="{x(value):.1f}" y="{HEIGHT - BOTTOM + 18}" '
                   f'text-anchor="middle">{value:g}</text>')
    for value in ticks(y_low, y_high):
        svg.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" '
                   f'y2="{y(value):.1f}"/>')
        svg.append(f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" '
                   f'text-anchor="end">{value:g}</text>')
    svg.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 18}" '
               'text-anchor="middle">bits per weight (linear layers)</text>')
    svg.append(f'<text transform="translate(20 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" '
               'text-anchor="middle">perplexity, times the dense model\'s</text>')
    landmarks = [p for p in compressed if p["codec"].startswith("int")]
    codecs = sorted({p["codec"] for p in compressed} - {p["codec"] for p in landmarks},
                    key=[p["codec"] for p in compressed].index)
    for colour, codec in zip(COLOURS, codecs):
        line = sorted((p["bits_per_weight_linear"], p["ratio_to_dense"])
                      for p in compressed if p["codec"] == codec)
        path = " ".join(f"{x(b):.1f},{y(r):.1f}" for b, r in line)
        svg.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for b, r in line:
            svg.append(f'<circle cx="{x(b):.1f}" cy="{y(r):.1f}" r="4" fill="{colour}"/>')
        b, r = line[-1]
        svg.append(f'<text x="{x(b) + 10:.1f}" y="{y(r) + 4:.1f}" '
                   f'style="fill:{colour}">{codec}</text>')
    for p in landmarks:
        b, r = x(p["bits_per_weight_linear"]), y(p["ratio_to_dense"])
        svg.append(f'<rect x="{b - 4:.1f}" y="{r - 4:.1f}" width="8" height="8" fill="#666"/>')
        svg.append(f'<text x="{b + 10:.1f}" y="{r + 4:.1f}">rounded {p["codec"]}</text>')
    svg.append("</svg>")
    return "\n".join(svg) + "\n"


def table(points):
    rows = ["| | bits per weight (linear) | (file) | bytes on disk | perplexity | times dense "
            "| compressed in |",
            "|---|---|---|---|---|---|---|"]
    for p in points:
        if not p["ratio_to_dense"]:  # why is in its "error"
            continue
        name = {"dense": "dense"}.get(p["codec"], p["codec"])
        if p["codec"].startswith("int"):
            name = f'rounded to nearest, {p["codec"]}, groups of 64'
        elif p["codec"] != "dense":
            unit = "bit" if p["target_bits"] == 1 else "bits"
            name = f'`{p["codec"]}`, {p["target_bits"]:g} {unit}'
        seconds = p["compress_seconds"]
        rows.append(f'| {name} | {p["bits_per_weight_linear"]:.4f} | '
                    f'{p["bits_per_weight_file"]:.2f} | {p["bytes"] / 1e6:.2f} MB | '
                    f'{p["perplexity"]:.1f} | {p["ratio_to_dense"]:.2f} | '
                    f'{"" if seconds is None else f"{seconds:.0f} s"} |')
    return "\n".join(rows)


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    docs = pathlib.Path(sys.argv[2] if len(sys.argv) == 3 else pathlib.Path(__file__).parent)
    points = json.loads(pathlib.Path(sys.argv[1]).read_text())["points"]
    (docs / "quality.svg").write_text(plot(points))
    page = docs / "quality.md"
    text = page.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n{table(points)}\n{END}{after}")


if __name__ == "__main__":
    main()
