#!/usr/bin/env bash
# Writes ultrasketch.pb, from which Envoy knows the messages that it turns into JSON and back. Needs protoc.
# usage: make_descriptor.sh [FILE], by default ultrasketch.pb beside this script.
set -euo pipefail
folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
proto=$folder/../../proto
# The details of errors are messages, too.
protoc --proto_path="$proto" --include_imports --descriptor_set_out="${1:-$folder/ultrasketch.pb}" \
  "$proto"/ultrasketch/v1/*.proto "$proto"/google/rpc/*.proto
