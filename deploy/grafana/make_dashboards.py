#!/usr/bin/env python3
"""Writes dashboards/*.json, which Grafana provisions. Standard library only.

usage: make_dashboards.py [--check]

--check writes nothing and fails when a file is not what this script makes.
"""

import json
import pathlib
import sys

FOLDER = pathlib.Path(__file__).parent / "dashboards"
DATA_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS = 24

# Every selector of a model's metrics, and of a process's.
MODEL = 'model=~"$model", instance=~"$instance"'
PROCESS = 'instance=~"$instance"'

TOKENS_PER_SECOND = "suffix: tokens/s"
BITS = "suffix: bits"
GREEN, YELLOW, RED = "green", "yellow", "red"


def thresholds(*steps):
    """Colours from the first value on: thresholds(GREEN, (0.8, YELLOW), (0.95, RED))."""
    first, *others = steps
    return {"mode": "absolute", "steps": [{"color": first, "value": None}] +
            [{"color": colour, "value": value} for value, colour in others]}


def target(expression, legend="", kind="time_series", instant=False):
    return {"expr": expression, "legendFormat": legend, "format": kind, "instant": instant,
            "range": not instant, "datasource": DATA_SOURCE}


def panel(kind, title, description, unit, targets, width, height=8, defaults=None, options=None, **more):
    for index, each in enumerate(targets):
        each["refId"] = chr(ord("A") + index)
    return {"type": kind, "title": title, "description": description, "datasource": DATA_SOURCE,
            "fieldConfig": {"defaults": {"unit": unit, **(defaults or {})}, "overrides": []},
            "options": options or {}, "targets": targets,
            "gridPos": {"w": width, "h": height}, **more}


def stat(title, description, unit, targets, steps=(GREEN,), width=3, height=4, decimals=None, graph=True):
    defaults = {"thresholds": thresholds(*steps), "color": {"mode": "thresholds"}, "min": 0}
    if decimals is not None:
        defaults["decimals"] = decimals
    return panel("stat", title, description, unit, targets, width, height, defaults,
                 {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
                  "colorMode": "value", "graphMode": "area" if graph else "none",
                  "textMode": "auto", "justifyMode": "auto", "orientation": "auto"})


def lines(title, description, unit, targets, width=8, stacked=False, limit=None, most=None):
    """Curves over time; `limit` draws a line at that value, `most` fixes the axis's end."""
    custom = {"lineWidth": 1, "fillOpacity": 25 if stacked else 8, "showPoints": "never",
              "spanNulls": False, "stacking": {"mode": "normal" if stacked else "none", "group": "A"}}
    defaults = {"custom": custom, "color": {"mode": "palette-classic"}, "min": 0}
    if limit is not None:
        custom["thresholdsStyle"] = {"mode": "dashed"}
        defaults["thresholds"] = thresholds("transparent", (limit, RED))
    if most is not None:
        defaults["max"] = most
    return panel("timeseries", title, description, unit, targets, width, 8, defaults,
                 {"legend": {"displayMode": "table", "placement": "bottom", "calcs": ["mean", "max"],
                             "showLegend": True},
                  "tooltip": {"mode": "multi", "sort": "desc"}})


def heat_map(title, description, metric, width=8):
    expression = f"sum by (le) (increase({metric}_bucket{{{MODEL}}}[$__rate_interval]))"
    return panel("heatmap", title, description, "s", [target(expression, "{{le}}", "heatmap")], width, 8,
                 {"custom": {"hideFrom": {"legend": False, "tooltip": False, "viz": False}}},
                 {"calculate": False, "cellGap": 1, "filterValues": {"le": 1e-9},
                  "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "exponent": 0.5,
                            "fill": "dark-orange", "reverse": False, "scale": "exponential"},
                  "legend": {"show": True}, "rowsFrame": {"layout": "auto"},
                  "tooltip": {"mode": "single", "yHistogram": True},
                  "yAxis": {"axisPlacement": "left", "unit": "s", "reverse": False}})


def table(title, description, unit, targets, width=8, height=8):
    return panel("table", title, description, unit, targets, width, height,
                 {"custom": {"align": "auto", "filterable": True}}, {"showHeader": True, "cellHeight": "sm"},
                 transformations=[{"id": "organize", "options": {"excludeByName": {
                     "Time": True, "__name__": True, "Value": True, "job": True}}}])


def rate(metric, labels="", selectors=MODEL):
    inner = selectors + (f", {labels}" if labels else "")
    return f"rate({metric}{{{inner}}}[$__rate_interval])"


def quantiles(metric, by="model"):
    legend = "{{%s}} " % by
    return [target(f"histogram_quantile({q}, sum by (le, {by}) ({rate(metric + '_bucket')}))",
                   f"{legend}p{round(q * 100)}") for q in (0.5, 0.95, 0.99)]


def quantile(q, metric):
    return f"histogram_quantile({q}, sum by (le) ({rate(metric + '_bucket')}))"


FAILURES = 'code=~"UNKNOWN|INTERNAL|UNAVAILABLE|DATA_LOSS|DEADLINE_EXCEEDED"'
KV_USED = (f'sum by ({{by}}) (ultrasketch_kv_blocks{{{{{MODEL}, state="used"}}}})'
           f' / sum by ({{by}}) (ultrasketch_kv_blocks{{{{{MODEL}}}}})')
GENERATING = 'phase=~"decode|mixed"'
NOT_OK = 'code!="OK"'
HIT = 'result="hit"'
DECODING, PREFILLING, SKETCH_STAGE = 'phase="decode"', 'phase="prefill"', 'stage="sketch"'
TTFT = "ultrasketch_time_to_first_token_seconds"
ITL = "ultrasketch_inter_token_latency_seconds"
DURATION = "ultrasketch_request_duration_seconds"
QUEUE = "ultrasketch_queue_duration_seconds"
STEP = "ultrasketch_step_duration_seconds"
STAGE = "ultrasketch_step_stage_seconds"


def serving():
    return [
        ("Now", [
            stat("Requests", "Generation and scoring calls answered per second.", "reqps",
                 [target(f"sum({rate('ultrasketch_requests_total')})")]),
            stat("Failures", "Share of calls that failed for a reason that lies with the server, or that were "
                 "too late. Bad input and shed load are not counted here.", "percentunit",
                 [target(f"sum({rate('ultrasketch_requests_total', FAILURES)})"
                         f" / sum({rate('ultrasketch_requests_total')})")],
                 (GREEN, (0.005, YELLOW), (0.02, RED)), decimals=2),
            stat("First token, p95", "From the call's arrival to its first token.", "s",
                 [target(quantile(0.95, TTFT))], (GREEN, (2, YELLOW), (5, RED))),
            stat("Between tokens, p95", "Between two tokens of a completion: what a reader sees.", "s",
                 [target(quantile(0.95, ITL))], (GREEN, (0.1, YELLOW), (0.25, RED))),
            stat("Generated", "Tokens generated per second, all models and replicas.", TOKENS_PER_SECOND,
                 [target(f"sum({rate('ultrasketch_generated_tokens_total')})")], decimals=0),
            stat("Running", "Requests that the engines compute.", "short",
                 [target(f"sum(ultrasketch_requests_running{{{MODEL}}})")], decimals=0),
            stat("Waiting", "Requests that wait for their first step. A queue that does not empty is too little "
                 "capacity.", "short", [target(f"sum(ultrasketch_requests_waiting{{{MODEL}}})")],
                 (GREEN, (16, YELLOW), (128, RED)), decimals=0),
            stat("KV cache", "The fullest KV cache of any model and replica.", "percentunit",
                 [target(f"max({KV_USED.format(by='instance, model')})")],
                 (GREEN, (0.8, YELLOW), (0.95, RED)), decimals=0),
        ]),
        ("Traffic", [
            lines("Requests by outcome", "Calls answered, by gRPC status code.", "reqps",
                  [target(f"sum by (code) ({rate('ultrasketch_requests_total')}) > 0", "{{code}}")], stacked=True),
            lines("Requests by model", "Calls answered, by the model that they named.", "reqps",
                  [target(f"sum by (model) ({rate('ultrasketch_requests_total')})", "{{model}}")], stacked=True),
            lines("Requests by replica", "Unequal curves: the load balancing does not see single calls. A gRPC "
                  "client keeps one connection unless it is told to take turns.", "reqps",
                  [target(f"sum by (instance) ({rate('ultrasketch_requests_total')})", "{{instance}}")],
                  stacked=True),
            lines("Tokens", "Prompt tokens computed and tokens generated. Those that the prefix cache had are not "
                  "computed.", TOKENS_PER_SECOND,
                  [target(f"sum by (model) ({rate('ultrasketch_prompt_tokens_total')})", "{{model}} prompt"),
                   target(f"sum by (model) ({rate('ultrasketch_generated_tokens_total')})",
                          "{{model}} generated")]),
            lines("Refused", "Calls that never reached an engine, by reason. queue_full is overload; "
                  "unknown_model names no hosted model, and is counted without a model.", "reqps",
                  [target(f"sum by (reason) ({rate('ultrasketch_rejected_requests_total', selectors=PROCESS)})",
                          "{{reason}}")], stacked=True),
            lines("Tokens by replica", "Tokens generated, by replica.", TOKENS_PER_SECOND,
                  [target(f"sum by (instance) ({rate('ultrasketch_generated_tokens_total')})", "{{instance}}")],
                  stacked=True),
        ]),
        ("Latency", [
            lines("Time to first token", "From the call's arrival, waiting included, to its first token.", "s",
                  quantiles(TTFT), 12),
            heat_map("Time to first token, distribution", "Two bands: short prompts and long ones, or a queue "
                     "that comes and goes.", TTFT, 12),
            lines("Inter-token latency", "Between two tokens of a completion. It grows with the batch, and with "
                  "prompts that are computed in the same steps: see --max-step-tokens.", "s", quantiles(ITL), 12),
            heat_map("Inter-token latency, distribution", "A second band above the first: steps that carry "
                     "prompts beside the tokens.", ITL, 12),
            lines("End-to-end time", "From the call's arrival to its end.", "s", quantiles(DURATION), 12),
            heat_map("End-to-end time, distribution", "Depends on how many tokens are asked for.", DURATION, 12),
            lines("Queue time", "From the call's arrival to the first step that serves it.", "s", quantiles(QUEUE),
                  12),
            heat_map("Queue time, distribution", "All in the lowest rows: there is capacity left.", QUEUE, 12),
        ]),
        ("Saturation", [
            lines("Running and waiting", "Requests that are computed, and that wait. A full batch and a growing "
                  "queue: add replicas.", "short",
                  [target(f"sum by (model) (ultrasketch_requests_running{{{MODEL}}})", "{{model}} running"),
                   target(f"sum by (model) (ultrasketch_requests_waiting{{{MODEL}}})", "{{model}} waiting")]),
            lines("Waiting by replica", "Requests that wait, by replica.", "short",
                  [target(f"sum by (instance) (ultrasketch_requests_waiting{{{MODEL}}})", "{{instance}}")]),
            lines("Prompt tokens waiting", "Tokens of the prompts that wait: how much work the queue is.", "short",
                  [target(f"sum by (model) (ultrasketch_tokens_waiting{{{MODEL}}})", "{{model}}")]),
            lines("Engine busy", "Share of time in which a model's engine computes steps. Models of one device "
                  "share it: their sum is at most about 1.", "percentunit",
                  [target(f"sum by (instance, model) ({rate(STEP + '_sum')})", "{{instance}} {{model}}")]),
            lines("Mean batch", "Tokens generated per step that generates: how well weights that are read once "
                  "are used.", "short",
                  [target(f"sum by (model) ({rate('ultrasketch_generated_tokens_total')})"
                          f" / sum by (model) ({rate(STEP + '_count', GENERATING)})",
                          "{{model}}")]),
            lines("KV cache in use", "Blocks of running requests over all blocks. At 100 percent requests are "
                  "preempted and computed again.", "percentunit",
                  [target(KV_USED.format(by="instance, model"), "{{instance}} {{model}}")], limit=0.95, most=1),
            lines("KV blocks", "Blocks of the KV cache. Cached ones keep beginnings of prompts, and are given "
                  "away when running requests need them.", "short",
                  [target(f"sum by (state) (ultrasketch_kv_blocks{{{MODEL}}})", "{{state}}")], stacked=True),
            lines("Prefix cache hits", "Share of prompt tokens that had been computed before.", "percentunit",
                  [target(f"sum by (model) ({rate('ultrasketch_prefix_cache_tokens_total', HIT)})"
                          f" / sum by (model) ({rate('ultrasketch_prefix_cache_tokens_total')})",
                          "{{model}}")], most=1),
            lines("Preemptions", "Requests per second that lost their KV blocks to others and were computed "
                  "again: give the KV cache more tokens, or run fewer sequences.", "ops",
                  [target(f"sum by (instance, model) ({rate('ultrasketch_preemptions_total')})",
                          "{{instance}} {{model}}")]),
        ]),
        ("Calls", [
            lines("Calls by method", "All calls answered, those that no model computes, too.", "reqps",
                  [target(f"sum by (method) ({rate('ultrasketch_calls_total', selectors=PROCESS)}) > 0",
                          "{{method}}")], stacked=True),
            lines("Open calls", "Calls that are not answered yet, by method.", "short",
                  [target(f"sum by (method) (ultrasketch_open_calls{{{PROCESS}}})", "{{method}}")], stacked=True),
            lines("Unread answers", "Bytes of answers that clients have not read: slow readers, or ones that went "
                  "away.", "bytes",
                  [target(f"sum by (instance) (ultrasketch_unread_bytes{{{PROCESS}}})", "{{instance}}")]),
            lines("Calls that failed", "By gRPC status code, of all methods.", "reqps",
                  [target(f"sum by (code) ({rate('ultrasketch_calls_total', NOT_OK, PROCESS)}) > 0", "{{code}}")],
                  stacked=True),
            lines("Connections", "Open connections, by replica.", "short",
                  [target(f"sum by (instance) (ultrasketch_connections{{{PROCESS}}})", "{{instance}}")]),
            lines("Turned away", "Calls without the right token, and connections beyond --max-connections.", "ops",
                  [target(f"sum by (code) ({rate('ultrasketch_refused_calls_total', selectors=PROCESS)})",
                          "call, {{code}}"),
                   target(f"sum by (reason) ({rate('ultrasketch_refused_connections_total', selectors=PROCESS)})",
                          "connection, {{reason}}")]),
        ]),
        ("Models and processes", [
            table("Models", "The state that each replica's models are in. FAILED: ListModels says why.", "none",
                  [target(f"ultrasketch_model_state{{{MODEL}}} == 1", "", "table", instant=True)]),
            lines("Loads of models", "Loads that succeeded and that failed, over the time shown.", "short",
                  [target(f"sum by (result) (increase(ultrasketch_model_loads_total{{{PROCESS}}}[$__range]))",
                          "{{result}}")]),
            table("Builds", "What runs where. Two versions outside a roll-out are one too many.", "none",
                  [target(f"ultrasketch_build_info{{{PROCESS}}}", "", "table", instant=True)]),
            lines("CPU", "Cores used, by replica.", "short",
                  [target(f"rate(process_cpu_seconds_total{{{PROCESS}}}[$__rate_interval])"
                          " and on (job, instance) ultrasketch_build_info", "{{instance}}")]),
            lines("Resident memory", "Of the process; a GPU's memory is in the dashboard of the sketch's "
                  "overhead.", "bytes",
                  [target(f"process_resident_memory_bytes{{{PROCESS}}}"
                          " and on (job, instance) ultrasketch_build_info", "{{instance}}")]),
            lines("Open files and threads", "Connections are open files.", "short",
                  [target(f"process_open_fds{{{PROCESS}}} and on (job, instance) ultrasketch_build_info",
                          "{{instance}} files"),
                   target(f"process_threads{{{PROCESS}}} and on (job, instance) ultrasketch_build_info",
                          "{{instance}} threads")]),
        ]),
    ]


def overhead():
    held = f'sum by ({{by}}) (ultrasketch_memory_bytes{{{{{MODEL}, kind=~"weights|embedding"}}}})'
    # Weights and embedding over their bytes per weight is the number of weights; bfloat16 takes two
    # bytes for each.
    dense = f'2 * {held} / max by ({{by}}) (ultrasketch_bytes_per_weight{{{{{MODEL}, scope="resident"}}}})'
    both = "instance, model"
    bits = f'8 * max by (model) (ultrasketch_bytes_per_weight{{{MODEL}, scope="%s"}})'
    ratio = f"max by (model, phase) (ultrasketch_sketch_overhead_ratio{{{MODEL}}})"
    return [
        ("Now", [
            stat("Time against dense", "Time of a step of the compressed model over one of the dense model of the "
                 "same shape, measured on this device after the model was loaded. Below 1 the sketch is faster.",
                 "none", [target(ratio, "{{model}} {{phase}}")],
                 (GREEN, (0.9, YELLOW), (1, RED)), 6, decimals=2, graph=False),
            stat("Bits per weight, linear", "All bytes that stand in for the linear layers' weights, times "
                 "8, over the number of those weights.", BITS, [target(bits % "linear", "{{model}}")],
                 width=4, decimals=3, graph=False),
            stat("Bits per weight, file", "Bytes of all files, times 8, over all weights. The embedding counts "
                 "here.", BITS, [target(bits % "file", "{{model}}")], width=4, decimals=2, graph=False),
            stat("Weights held", "Memory of weights and embeddings, all replicas.", "bytes",
                 [target(f"sum({held.format(by='model')})")], width=5, graph=False),
            stat("Weights, were they dense", "What the same weights take in bfloat16.", "bytes",
                 [target(f"sum({dense.format(by=both)})")], width=5, graph=False),
        ]),
        ("Time", [
            lines("Time against dense", "Over 1 the compressed model is slower than the dense one would be: see "
                  "docs/observing.md.", "none", [target(ratio, "{{model}} {{phase}}")], limit=1),
            lines("Sketch's share of a step", "Share of the steps' time in products of compressed layers, making their "
                  "inputs included.", "percentunit",
                  [target(f"sum by (model, phase) ({rate(STAGE + '_sum', SKETCH_STAGE)})"
                          f" / sum by (model, phase) ({rate(STAGE + '_sum')})", "{{model}} {{phase}}")], most=1),
            lines("Share of time by stage", "sketch: products of compressed layers; gemm: of uncompressed ones; head: "
                  "the product with the output head; other: planning, embedding, waiting for the device.",
                  "percentunit",
                  [target(f"sum by (stage) ({rate(STAGE + '_sum')})"
                          f" / on () group_left () sum({rate(STAGE + '_sum')})", "{{stage}}")], stacked=True, most=1),
            lines("Stages of a decoding step", "Mean time of each stage in steps that only generate.", "s",
                  [target(f"sum by (stage) ({rate(STAGE + '_sum', DECODING)})"
                          f" / sum by (stage) ({rate(STAGE + '_count', DECODING)})", "{{stage}}")],
                  stacked=True),
            lines("Stages of a prefill step", "Mean time of each stage in steps that only compute prompts.", "s",
                  [target(f"sum by (stage) ({rate(STAGE + '_sum', PREFILLING)})"
                          f" / sum by (stage) ({rate(STAGE + '_count', PREFILLING)})", "{{stage}}")],
                  stacked=True),
            lines("Step time", "Mean time of a step, by what it computed.", "s",
                  [target(f"sum by (model, phase) ({rate(STEP + '_sum')})"
                          f" / sum by (model, phase) ({rate(STEP + '_count')})", "{{model}} {{phase}}")]),
            heat_map("Step time, distribution", "Of steps of all phases.", STEP),
            lines("Step time, p95", "95 of 100 steps take less.", "s",
                  [target(f"histogram_quantile(0.95, sum by (le, model, phase) ({rate(STEP + '_bucket')}))",
                          "{{model}} {{phase}}")]),
            lines("Steps", "Steps per second, by what they computed.", "ops",
                  [target(f"sum by (phase) ({rate(STEP + '_count')})", "{{phase}}")], stacked=True),
        ]),
        ("Size", [
            lines("Bits per weight", "Of the linear layers and of all files as they are on disk, and of all "
                  "weights as they are held.", BITS,
                  [target(f"8 * max by (model, scope) (ultrasketch_bytes_per_weight{{{MODEL}}})",
                          "{{model}} {{scope}}")]),
            lines("Memory by kind", "Everything that the processes and devices hold. What is not weights, "
                  "embedding, KV cache or workspace is other.", "bytes",
                  [target('sum by (kind) (ultrasketch_memory_bytes{model=~"$model|", instance=~"$instance"})',
                          "{{kind}}")], stacked=True),
            lines("Weights against dense", "Memory of weights and embeddings beside what they would take in "
                  "bfloat16.", "bytes",
                  [target(held.format(by=both), "{{instance}} {{model}} held"),
                   target(dense.format(by=both), "{{instance}} {{model}} dense")]),
            lines("KV cache and workspace", "On CPUs pages of the KV cache come with use; on GPUs it is "
                  "allocated at once. Models of a device share its workspace.", "bytes",
                  [target("sum by (instance, device, kind) (ultrasketch_memory_bytes{"
                          'model=~"$model|", instance=~"$instance", kind=~"kv_cache|workspace"})',
                          "{{instance}} {{device}} {{kind}}")]),
            lines("Models per device", "Models that hold weights there.", "short",
                  [target("count by (instance, device) "
                          f'(ultrasketch_memory_bytes{{{MODEL}, kind="weights"}})', "{{instance}} {{device}}")]),
            lines("Not accounted for", "Memory that no kind explains. It should not grow.", "bytes",
                  [target("sum by (instance, device) (ultrasketch_memory_bytes{" + PROCESS + ', kind="other"})',
                          "{{instance}} {{device}}")]),
        ]),
    ]


def place(sections):
    """Rows and panels, from left to right and top to bottom, numbered from 1."""
    placed, y = [], 0
    for title, panels in sections:
        placed.append({"type": "row", "title": title, "collapsed": False, "panels": [],
                       "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1}})
        y += 1
        x = row_height = 0
        for each in panels:
            width, height = each["gridPos"]["w"], each["gridPos"]["h"]
            if x + width > COLUMNS:
                x, y, row_height = 0, y + row_height, 0
            each["gridPos"].update(x=x, y=y)
            x += width
            row_height = max(row_height, height)
            placed.append(each)
        y += row_height
    for number, each in enumerate(placed, 1):
        each["id"] = number
    return placed


def variable(name, label, metric):
    query = f"label_values({metric}, {name})"
    return {"name": name, "label": label, "type": "query", "datasource": DATA_SOURCE,
            "definition": query, "query": {"query": query, "refId": name}, "refresh": 2,
            "includeAll": True, "multi": True, "sort": 1, "hide": 0,
            "current": {"selected": True, "text": ["All"], "value": ["$__all"]}}


def dashboard(uid, title, description, sections):
    return {
        "uid": uid, "title": title, "description": description, "tags": ["ultrasketch"],
        "schemaVersion": 39, "version": 1, "editable": True, "graphTooltip": 1,
        "refresh": "10s", "time": {"from": "now-30m", "to": "now"}, "timezone": "browser",
        "annotations": {"list": []},
        "links": [{"type": "dashboards", "title": "ultrasketch", "tags": ["ultrasketch"], "asDropdown": False,
                   "keepTime": True, "includeVars": True, "targetBlank": False}],
        "templating": {"list": [
            {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus",
             "refresh": 1, "hide": 0, "includeAll": False, "multi": False,
             "current": {"selected": True, "text": "Prometheus", "value": "prometheus"}},
            variable("model", "Model", "ultrasketch_model_state"),
            variable("instance", "Replica", "ultrasketch_build_info")]},
        "panels": place(sections),
    }


DASHBOARDS = {
    "serving.json": lambda: dashboard(
        "ultrasketch-serving", "ultrasketch: serving",
        "Traffic, latency and saturation of ultrasketch servers, per model and replica.", serving()),
    "sketch-overhead.json": lambda: dashboard(
        "ultrasketch-sketch-overhead", "ultrasketch: sketch overhead",
        "What compressed weights cost in time and save in memory, against dense ones.", overhead()),
}


def main():
    check = sys.argv[1:] == ["--check"]
    if sys.argv[1:] and not check:
        sys.exit(__doc__)
    for name, make in DASHBOARDS.items():
        path = FOLDER / name
        text = json.dumps(make(), indent=1) + "\n"
        if not check:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            sys.exit(f"{path} is not what {__file__} makes: run it, and commit the file")


if __name__ == "__main__":
    main()
