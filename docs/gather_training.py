#!/usr/bin/env python3
"""Gathers finetuning runs into one JSON file for plot_quality.py. Standard library only.

usage: gather_training.py ULTRASKETCH TEXT RUN=LABEL... > docs/training.json

RUN is the --out folder of `ultrasketch finetune --json`, whose output is in RUN.json and whose log is
RUN.training/training.jsonl. Each model's size and its perplexity on TEXT are those that the program
ULTRASKETCH says.
"""

import json
import pathlib
import subprocess
import sys

MOST_POINTS = 200


def thinned(points):
    step = max(1, -(-len(points) // MOST_POINTS))
    return points[::step] + ([points[-1]] if (len(points) - 1) % step else [])


def call(program, *arguments):
    result = subprocess.run([program, *arguments, "--json"], check=True, capture_output=True)
    return json.loads(result.stdout)


def gather(program, text, folder, label):
    report = json.loads(pathlib.Path(f"{folder}.json").read_text())
    log = pathlib.Path(f"{folder}.training/training.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in log]
    size = call(program, "inspect", folder)
    evaluation = call(program, "eval", "--model", folder, "--text", text)
    config = json.loads((pathlib.Path(folder) / "config.json").read_text())
    return {
        "label": label,
        "codec": config["quantization_config"]["codec"],
        "bits_per_weight_linear": size["bits_per_weight_linear"],
        "bits_per_weight_file": size["bits_per_weight_file"],
        "bytes": size["bytes"],
        "perplexity": evaluation["perplexity"],
        "eval_tokens": evaluation["tokens"],
        # On the tokens of the evaluations during training, as are `perplexities`.
        "teacher_perplexity": report["perplexity_teacher"],
        "tokens": report["tokens"],
        "steps": report["steps"],
        "seconds": report["seconds"],
        "tokens_per_second": report["tokens_per_second"],
        "device": report["device"],
        "losses": thinned([[r["tokens"], r["loss"]] for r in records if "loss" in r]),
        "perplexities": thinned([[r["tokens"], r["perplexity"]] for r in records
                                 if "perplexity" in r]),
    }


def main():
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    program, text = sys.argv[1:3]
    runs = [gather(program, text, *argument.split("=", 1)) for argument in sys.argv[3:]]
    text_name = pathlib.Path(text).name
    print('{\n  "text": %s,\n  "runs": [\n    %s\n  ]\n}' % (
        json.dumps(text_name), ",\n    ".join(json.dumps(run) for run in runs)))


if __name__ == "__main__":
    main()
