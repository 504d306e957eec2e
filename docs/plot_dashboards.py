#!/usr/bin/env python3
"""Draws dashboard-*.svg: what Grafana's dashboards show, with the panels, queries, units and places of
deploy/grafana/dashboards. Needs Debian's python3-yaml.

usage: plot_dashboards.py BIN_DIR SECONDS OUTPUT_FOLDER
         of a server of its own under changing load; needs Debian's prometheus, too. docs/ has such pictures
       plot_dashboards.py --prometheus HOST:PORT SECONDS OUTPUT_FOLDER
         of the last SECONDS of the servers that this Prometheus scrapes, where there is no Grafana
"""

import html
import math
import pathlib
import re
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests/deploy"))
import live_prometheus  # noqa: E402

COLUMN, ROW, GAP = 50, 22, 4
# Until rates have a whole window.
WARM_UP_SECONDS = 20
MODELS = {"sketch": "classics-20m-sketch", "dense": "classics-6m"}
# Okabe and Ito's palette: told apart by colour-blind readers too.
COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999933", "#882255", "#777777"]
STATES = {"green": "#1a9850", "yellow": "#d9a400", "red": "#d73027"}
STYLE = ("text{fill:#333;font-family:sans-serif;font-size:11px}.t{font-weight:bold;font-size:12px}"
         ".r{font-weight:bold;font-size:15px}.s{fill:#777;font-size:9.5px}.page{fill:#f4f5f5}"
         ".panel{fill:#fff;stroke:#d8d9da}.grid{stroke:#e4e5e6}.limit{stroke:#d73027;stroke-dasharray:4 3}"
         "@media(prefers-color-scheme:dark){text{fill:#ccd}.s{fill:#99a}.page{fill:#111217}"
         ".panel{fill:#181b1f;stroke:#2c3235}.grid{stroke:#2c3235}}")


def scaled(value, steps, suffixes):
    for step, suffix in zip(steps, suffixes):
        if abs(value) >= step:
            return f"{value / step:.3g} {suffix}".strip()
    return f"{value / steps[-1]:.3g} {suffixes[-1]}".strip()


def show(value, unit, decimals=None):
    """As Grafana does, roughly."""
    if unit == "s":
        return scaled(value, (60, 1, 1e-3, 1e-6), ("min", "s", "ms", "µs")) if value else "0 s"
    if unit == "bytes":
        return scaled(value, (2**30, 2**20, 2**10, 1), ("GiB", "MiB", "KiB", "B"))
    if unit == "percentunit":
        return f"{100 * value:.{1 if decimals is None else decimals}f} %"
    number = f"{value:.{decimals}f}" if decimals is not None else f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    suffix = {"reqps": " req/s", "ops": " /s"}.get(unit, unit.removeprefix("suffix:") if "suffix:" in unit else "")
    return number + suffix


def text(x, y, content, kind="", anchor="start", more=""):
    return (f'<text x="{x:.1f}" y="{y:.1f}"' + (f' class="{kind}"' if kind else "") +
            (f' text-anchor="{anchor}"' if anchor != "start" else "") + f"{more}>{html.escape(content)}</text>")


class Picture:
    def __init__(self, dashboard, prometheus, start, end):
        self.dashboard, self.prometheus, self.start, self.end = dashboard, prometheus, start, end
        self.step = max(1, round((end - start) / 90))
        self.variables = prometheus.variables(dashboard, rate_interval=f"{max(15, 4 * self.step)}s", range=f"{round(end - start)}s")
        self.parts = []

    def draw(self):
        height = ROW * max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in self.dashboard["panels"])
        width = 24 * COLUMN
        for panel in self.dashboard["panels"]:
            place = panel["gridPos"]
            box = [place["x"] * COLUMN + GAP / 2, place["y"] * ROW + GAP / 2,
                   place["w"] * COLUMN - GAP, place["h"] * ROW - GAP]
            if panel["type"] == "row":
                self.parts.append(text(box[0] + 4, box[1] + ROW - 8, panel["title"], "r"))
                continue
            self.parts.append(f'<rect class="panel" x="{box[0]}" y="{box[1]}" width="{box[2]}" height="{box[3]}" rx="2"/>')
            self.parts.append(text(box[0] + 8, box[1] + 15, panel["title"], "t"))
            inner = (box[0] + 8, box[1] + 22, box[2] - 16, box[3] - 26)
            {"stat": self.stat, "timeseries": self.lines, "heatmap": self.heat_map,
             "table": self.table}[panel["type"]](panel, *inner)
        return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">',
                          f"<style>{STYLE}</style>", f'<rect class="page" width="{width}" height="{height}"/>',
                          *self.parts, "</svg>"]) + "\n"

    def curves(self, panel):
        """[(legend, labels, {time: value})] of all of a panel's queries."""
        found = []
        for target in panel["targets"]:
            expression = live_prometheus.substitute(target["expr"], self.variables)
            for labels, values in self.prometheus.query_range(expression, self.start, self.end, self.step):
                legend = re.sub(r"{{(\w+)}}", lambda match: labels.get(match[1], ""), target["legendFormat"])
                # The port is another one each time.
                legend = re.sub(r"127\.0\.0\.1:\d+", "host:8002", legend)
                found.append((legend, labels, {at: value for at, value in values if math.isfinite(value)}))
        return sorted((curve for curve in found if curve[2]), key=lambda curve: curve[0])

    def x(self, at, left, width):
        return left + (at - self.start) / (self.end - self.start) * width

    def nothing(self, x, y, width, height):
        self.parts.append(text(x + width / 2, y + height / 2, "no data", "s", "middle"))

    def stat(self, panel, x, y, width, height):
        defaults = panel["fieldConfig"]["defaults"]
        curves = self.curves(panel)
        if not curves:
            return self.nothing(x, y, width, height)
        if panel["options"]["graphMode"] == "area":
            points = curves[0][2]
            most = max(points.values()) or 1
            line = " ".join(f"{self.x(at, x, width):.1f},{y + height - value / most * height * 0.45:.1f}"
                            for at, value in points.items())
            self.parts.append(f'<polygon points="{x:.1f},{y + height:.1f} {line} {self.x(max(points), x, width):.1f},'
                              f'{y + height:.1f}" fill="{COLOURS[0]}" fill-opacity="0.2"/>')
        share = width / len(curves)
        for index, (legend, _, points) in enumerate(curves):
            value = points[max(points)]
            colour = [step["color"] for step in defaults["thresholds"]["steps"]
                      if step["value"] is None or value >= step["value"]][-1]
            shown = show(value, defaults["unit"], defaults.get("decimals"))
            size = min(24, share / (0.62 * len(shown)))
            middle = x + share * (index + 0.5)
            self.parts.append(text(middle, y + height / 2 + 6, shown, "", "middle",
                                   f' style="font-size:{size:.0f}px;fill:{STATES[colour]}"'))
            if len(curves) > 1:
                self.parts.append(text(middle, y + height - 4, legend, "s", "middle"))

    def axes(self, x, y, width, height, most, unit):
        for part in (0, 0.5, 1):
            at = y + height * (1 - part)
            self.parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x + width:.1f}" y1="{at:.1f}" y2="{at:.1f}"/>')
            self.parts.append(text(x - 4, at + 3, show(most * part, unit), "s", "end"))
        self.times(x, y + height, width)

    def times(self, x, y, width):
        for minute in range(int((self.end - self.start) // 60) + 1):
            at = self.x(self.start + 60 * minute, x, width)
            self.parts.append(text(at, y + 11, f"{minute} min" if minute else "0", "s", "middle"))

    def legend(self, curves, x, y, width):
        at = x
        for index, (legend, _, _) in enumerate(curves):
            needed = 14 + 5.3 * len(legend)
            if at + needed > x + width:
                self.parts.append(text(at, y, "…", "s"))
                break
            self.parts.append(f'<rect x="{at:.1f}" y="{y - 7:.1f}" width="8" height="8" '
                              f'fill="{COLOURS[index % len(COLOURS)]}"/>')
            self.parts.append(text(at + 11, y, legend, "s"))
            at += needed + 8

    def lines(self, panel, x, y, width, height):
        defaults = panel["fieldConfig"]["defaults"]
        curves = self.curves(panel)
        if not curves:
            return self.nothing(x, y, width, height)
        stacked = defaults["custom"]["stacking"]["mode"] == "normal"
        left, plot_width, plot_height = x + 52, width - 56, height - 34
        times = sorted({at for curve in curves for at in curve[2]})
        base = dict.fromkeys(times, 0.0)
        tops = []
        for _, _, points in curves:
            if stacked:
                points = {at: points.get(at, 0.0) + base[at] for at in times}
                tops.append((dict(base), points))
                base = points
            else:
                tops.append((None, points))
        limits = [step["value"] for step in defaults.get("thresholds", {"steps": []})["steps"] if step["value"]]
        most = defaults.get("max") or 1.05 * max([value for _, top in tops for value in top.values()] + limits) or 1
        self.axes(left, y + 4, plot_width, plot_height, most, defaults["unit"])

        def point(at, value):
            return f"{self.x(at, left, plot_width):.1f},{y + 4 + plot_height * (1 - min(value / most, 1)):.1f}"

        def corners(points, backwards=False):
            """Without the points between two of the same height."""
            all_times = sorted(points, reverse=backwards)
            kept = [at for before, at, after in zip([None] + all_times, all_times, all_times[1:] + [None])
                    if before is None or after is None or not points[before] == points[at] == points[after]]
            return " ".join(point(at, points[at]) for at in kept)

        for index, (bottom, top) in enumerate(tops):
            colour = COLOURS[index % len(COLOURS)]
            line = corners(top)
            if bottom is not None:
                back = corners(bottom, backwards=True)
                self.parts.append(f'<polygon points="{line} {back}" fill="{colour}" fill-opacity="0.55"/>')
            self.parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.3"/>')
        for limit in limits:
            at = y + 4 + plot_height * (1 - limit / most)
            self.parts.append(f'<line class="limit" x1="{left:.1f}" x2="{left + plot_width:.1f}" y1="{at:.1f}" y2="{at:.1f}"/>')
        self.legend(curves, x, y + height - 2, width)

    def heat_map(self, panel, x, y, width, height):
        buckets = sorted((float(labels["le"]), points) for _, labels, points in self.curves(panel))
        cells = {}
        for index, (_, points) in enumerate(buckets):
            for at, value in points.items():
                below = buckets[index - 1][1].get(at, 0.0) if index else 0.0
                if value - below > 1e-9:
                    cells[index, at] = value - below
        if not cells:
            return self.nothing(x, y, width, height)
        first, last = min(index for index, _ in cells), max(index for index, _ in cells)
        left, plot_width, plot_height = x + 52, width - 56, height - 20
        cell_height = plot_height / (last - first + 1)
        cell_width = plot_width * self.step / (self.end - self.start)
        most = max(cells.values())
        # One path for all cells of a shade keeps the file small.
        shades = {}
        for (index, at), value in cells.items():
            top = y + 4 + plot_height - (index - first + 1) * cell_height
            shade = math.ceil(8 * math.sqrt(value / most)) / 8
            shades.setdefault(shade, []).append(
                f"M{self.x(at, left, plot_width):.1f} {top:.1f}h{cell_width:.1f}v{cell_height:.1f}h-{cell_width:.1f}z")
        for shade, path in sorted(shades.items()):
            self.parts.append(f'<path fill="#d55e00" fill-opacity="{shade}" d="{"".join(path)}"/>')
        for index in range(first, last + 1, max(1, (last - first) // 4)):
            bound = buckets[index][0]
            label = show(bound, "s") if math.isfinite(bound) else "more"
            self.parts.append(text(left - 4, y + 7 + plot_height - (index - first + 1) * cell_height, label, "s", "end"))
        self.times(left, y + 4 + plot_height, plot_width)

    def table(self, panel, x, y, width, height):
        (target,) = panel["targets"]
        rows = [labels for labels, _ in
                self.prometheus.query(live_prometheus.substitute(target["expr"], self.variables))]
        if not rows:
            return self.nothing(x, y, width, height)
        hidden = panel["transformations"][0]["options"]["excludeByName"]
        names = [name for name in sorted(rows[0]) if name not in hidden]
        for column, name in enumerate(names):
            at = x + column * width / len(names)
            self.parts.append(text(at, y + 14, name, "t"))
            for line, labels in enumerate(rows[:int(height / 18) - 1]):
                shown = re.sub(r"127\.0\.0\.1:\d+", "host:8002", labels.get(name, ""))
                self.parts.append(text(at, y + 34 + 18 * line, shown))


def draw(prometheus, start, end, folder):
    for name, dashboard in live_prometheus.dashboards().items():
        path = folder / f"dashboard-{name.removesuffix('.json')}.svg"
        path.write_text(Picture(dashboard, prometheus, start, end).draw())
        print(path)


def draw_of_a_server(binaries, seconds, folder):
    models = {name: live_prometheus.ROOT / "deploy/models" / model for name, model in MODELS.items()}
    with live_prometheus.serve(binaries / "ultrasketchd", models,
                               server_options=["--max-running-sequences", "3"]) as (address, prometheus):
        loads = [live_prometheus.Load(binaries / "ultrasketch", address, model) for model in MODELS]
        with loads[0].waves(WARM_UP_SECONDS + seconds), loads[1].waves(WARM_UP_SECONDS + seconds):
            time.sleep(WARM_UP_SECONDS)
            start = time.time()
            time.sleep(seconds)
            end = time.time()
        draw(prometheus, start, end, folder)


def main():
    arguments = sys.argv[1:]
    try:
        if arguments[:1] == ["--prometheus"]:
            address, seconds, folder = arguments[1:]
            now = time.time()
            draw(live_prometheus.Prometheus(address), now - int(seconds), now, pathlib.Path(folder))
        else:
            binaries, seconds, folder = arguments
            draw_of_a_server(pathlib.Path(binaries), int(seconds), pathlib.Path(folder))
    except ValueError as error:
        sys.exit(f"{error}\n{__doc__}")


if __name__ == "__main__":
    main()
