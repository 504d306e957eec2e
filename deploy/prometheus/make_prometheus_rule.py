#!/usr/bin/env python3
"""Prints rules/*.yml as a PrometheusRule, for the Prometheus operator. Needs python3-yaml.

usage: make_prometheus_rule.py > deploy/kubernetes/components/monitoring/prometheus-rule.yaml
"""

import pathlib
import sys

import yaml


class Dumper(yaml.SafeDumper):
    pass


# Expressions of several lines stay so.
Dumper.add_representer(str, lambda dumper, text: dumper.represent_scalar(
    "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None))

if len(sys.argv) > 1:
    sys.exit(__doc__)
folder = pathlib.Path(__file__).parent / "rules"
groups = [group for path in sorted(folder.glob("*.yml")) for group in yaml.safe_load(path.read_text())["groups"]]
rule = {"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule",
        "metadata": {"name": "ultrasketch", "labels": {"release": "prometheus"}}, "spec": {"groups": groups}}
print("# Made by deploy/prometheus/make_prometheus_rule.py.")
print(yaml.dump(rule, Dumper=Dumper, sort_keys=False, width=110), end="")
