#!/usr/bin/env python3
"""Draws docs/quality.svg and docs/training.svg and writes the table of docs/quality.md, from the JSON
of `ultrasketch bench quality` and that of gather_training.py. Standard library only.

usage: plot_quality.py [DOCS_FOLDER]

Reads quality.json and, where it is there, training.json in the folder; and for a table each, the same
files of other models: quality-smollm2.json, training-smollm2.json.
"""

import json
import math
import pathlib
import sys

WIDTH, HEIGHT = 800, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 220, 30, 60
# Okabe and Ito's palette: told apart by colour-blind readers too.
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#777777"]
# Suffixes of the files of models beside the first.
OTHER_MODELS = ["-smollm2"]
STYLE = ("text{fill:#333}.grid{stroke:#ccc;stroke-width:1}.page{fill:#fff}"
         "@media(prefers-color-scheme:dark){text{fill:#ddd}.grid{stroke:#444}.page{fill:#14171a}}")


def log_scale(low, high, begin, end):
    span = math.log(high) - math.log(low)
    return lambda value: begin + (math.log(value) - math.log(low)) / span * (end - begin)


def ticks(low, high):
    """1, 2 and 5 times the powers of ten within [low, high]."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    values = [m * 10.0**e for e in range(first, last + 1) for m in (1, 2, 5)]
    return [v for v in values if low * 0.999 <= v <= high * 1.001]


class Chart:
    """Both axes logarithmic."""

    def __init__(self, x_range, y_range, x_title, y_title):
        self.x = log_scale(*x_range, LEFT, WIDTH - RIGHT)
        self.y = log_scale(*y_range, HEIGHT - BOTTOM, TOP)
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
            'font-family="sans-serif" font-size="13">',
            f"<style>{STYLE}</style>",
            f'<rect class="page" width="{WIDTH}" height="{HEIGHT}"/>',
        ]
        for value in ticks(*x_range):
            at = f"{self.x(value):.1f}"
            self.parts.append(f'<line class="grid" x1="{at}" x2="{at}" y1="{TOP}" '
                              f'y2="{HEIGHT - BOTTOM}"/>')
            self.parts.append(f'<text x="{at}" y="{HEIGHT - BOTTOM + 18}" '
                              f'text-anchor="middle">{value:g}</text>')
        for value in ticks(*y_range):
            at = self.y(value)
            self.parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" '
                              f'y2="{at:.1f}"/>')
            self.parts.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" '
                              f'text-anchor="end">{value:g}</text>')
        self.parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 18}" '
                          f'text-anchor="middle">{x_title}</text>')
        self.parts.append(f'<text transform="translate(20 {(TOP + HEIGHT - BOTTOM) / 2}) '
                          f'rotate(-90)" text-anchor="middle">{y_title}</text>')

    def line(self, points, colour, label, dots=True):
        path = " ".join(f"{self.x(a):.1f},{self.y(b):.1f}" for a, b in points)
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" '
                          'stroke-width="2"/>')
        if dots:
            for a, b in points:
                self.dot(a, b, colour)
        self.label(*points[-1], label, colour)

    def dot(self, a, b, colour):
        self.parts.append(f'<circle cx="{self.x(a):.1f}" cy="{self.y(b):.1f}" r="4" '
                          f'fill="{colour}"/>')

    def square(self, a, b, label):
        self.parts.append(f'<rect x="{self.x(a) - 4:.1f}" y="{self.y(b) - 4:.1f}" width="8" '
                          'height="8" fill="#777"/>')
        self.label(a, b, label)

    def label(self, a, b, text, colour=None):
        style = f' style="fill:{colour}"' if colour else ""
        self.parts.append(f'<text x="{self.x(a) + 10:.1f}" y="{self.y(b) + 4:.1f}"{style}>'
                          f"{text}</text>")

    def svg(self):
        return "\n".join(self.parts + ["</svg>"]) + "\n"


def draw_rates(points, runs, dense):
    compressed = [p for p in points if p["codec"] != "dense" and p["ratio_to_dense"]]
    # Of each codec and rate, the run that ended best.
    best = {}
    for run in runs:
        key = (run["codec"], round(run["bits_per_weight_linear"], 2))
        if key not in best or run["perplexity"] < best[key]["perplexity"]:
            best[key] = run
    tuned = [(run["codec"], run["bits_per_weight_linear"], run["perplexity"] / dense)
             for run in best.values()]
    bits = [p["bits_per_weight_linear"] for p in compressed]
    ratios = [p["ratio_to_dense"] for p in compressed] + [ratio for _, _, ratio in tuned]
    chart = Chart((min(bits) / 1.3, max(bits) * 1.3), (0.9, max(ratios) * 1.4),
                  "bits per weight (linear layers)", "perplexity, times the dense model's")
    landmarks = [p for p in compressed if p["codec"].startswith("int")]
    codecs = sorted({p["codec"] for p in compressed} - {p["codec"] for p in landmarks},
                    key=[p["codec"] for p in compressed].index)
    colours = iter(COLOURS)
    for codec in codecs:
        chart.line(sorted((p["bits_per_weight_linear"], p["ratio_to_dense"])
                          for p in compressed if p["codec"] == codec), next(colours), codec)
    for codec in codecs:
        line = sorted((b, ratio) for name, b, ratio in tuned if name == codec)
        if line:
            chart.line(line, next(colours), f"{codec}, finetuned")
    for p in landmarks:
        chart.square(p["bits_per_weight_linear"], p["ratio_to_dense"], f'rounded {p["codec"]}')
    return chart.svg()


def draw_training(runs):
    curves = [(run["label"].replace("`", ""),
               [(tokens / 1e6, perplexity / run["teacher_perplexity"])
                for tokens, perplexity in run["perplexities"] if tokens > 0]) for run in runs]
    curves = [(label, points) for label, points in curves if points]
    x = [a for _, points in curves for a, _ in points]
    y = [b for _, points in curves for _, b in points]
    chart = Chart((min(x) / 1.1, max(x) * 1.1), (1, max(y) * 1.1), "million tokens of training",
                  "perplexity, times the dense model's")
    for index, (label, points) in enumerate(curves):
        chart.line(points, COLOURS[index % len(COLOURS)], label, dots=False)
    return chart.svg()


def duration(seconds):
    if seconds is None:
        return ""
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"


def row(name, point, perplexity, ratio, compressed_in="", tokens="", trained_in=""):
    return (f'| {name} | {point["bits_per_weight_linear"]:.4f} | '
            f'{point["bits_per_weight_file"]:.2f} | {point["bytes"] / 1e6:.2f} MB | '
            f"{perplexity:.1f} | {ratio:.2f} | {compressed_in} | {tokens} | {trained_in} |")


def table(points, runs, dense):
    rows = ["| | bits per weight (linear) | (file) | bytes on disk | perplexity | times dense "
            "| compressed in | finetuned on | in |",
            "|---|---|---|---|---|---|---|---|---|"]
    for p in points:
        if not p["ratio_to_dense"]:  # why is in its "error"
            continue
        name = p["codec"]
        if p["codec"].startswith("int"):
            name = f'rounded to nearest, {p["codec"]}, groups of 64'
        elif p["codec"] != "dense":
            unit = "bit" if p["target_bits"] == 1 else "bits"
            name = f'`{p["codec"]}`, {p["target_bits"]:g} {unit}'
        rows.append(row(name, p, p["perplexity"], p["ratio_to_dense"],
                        duration(p["compress_seconds"])))
    for run in runs:
        rows.append(row(run["label"], run, run["perplexity"], run["perplexity"] / dense,
                        tokens=f'{run["tokens"] / 1e6:.1f}M tokens',
                        trained_in=f'{duration(run["seconds"])}, {run["device"]}'))
    return "\n".join(rows)


def main():
    if len(sys.argv) > 2:
        sys.exit(__doc__)
    docs = pathlib.Path(sys.argv[1] if len(sys.argv) == 2 else pathlib.Path(__file__).parent)
    points = json.loads((docs / "quality.json").read_text())["points"]
    dense = next(p["perplexity"] for p in points if p["codec"] == "dense")
    training = docs / "training.json"
    runs = json.loads(training.read_text())["runs"] if training.exists() else []
    (docs / "quality.svg").write_text(draw_rates(points, runs, dense))
    if runs:
        (docs / "training.svg").write_text(draw_training(runs))
    page = docs / "quality.md"
    text = with_table(page.read_text(), "", table(points, runs, dense))
    for suffix in OTHER_MODELS:
        points = json.loads((docs / f"quality{suffix}.json").read_text())["points"]
        runs = json.loads((docs / f"training{suffix}.json").read_text())["runs"]
        dense = next(p["perplexity"] for p in points if p["codec"] == "dense")
        text = with_table(text, suffix, table(points, runs, dense))
    page.write_text(text)


def with_table(page, suffix, rows):
    begin, end = (f"<!-- table{suffix}: {word} -->" for word in ("begin", "end"))
    before, rest = page.split(begin)
    return f"{before}{begin}\n{rows}\n{end}{rest.split(end)[1]}"


if __name__ == "__main__":
    main()
