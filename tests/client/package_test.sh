#!/usr/bin/env bash
# Installs the C++ client, builds client/example against what was installed and nothing else, and runs
# it against the server.
#
#   package_test.sh BUILD_DIR WORK_DIR
set -euo pipefail
source_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
build=$1
work=$2
model=$source_dir/deploy/models/classics-20m-sketch

fail() {
  echo "FAILED: $*" >&2
  exit 1
}

rm -rf "$work"
mkdir -p "$work"
cmake --install "$build" --component development --prefix "$work/prefix" >"$work/install.log"
# Moved: nothing may point to where it was installed, or built.
mv "$work/prefix" "$work/moved"
! grep -rlE "$source_dir|$build" "$work/moved" --include='*.cmake' --include='*.h' ||
  fail "the installed files above name the folders of this build"
cmake -S "$source_dir/client/example" -B "$work/example" -DCMAKE_PREFIX_PATH="$work/moved" \
  -DCMAKE_CXX_FLAGS="-Wall -Wextra -Werror" >"$work/configure.log"
cmake --build "$work/example" >"$work/build.log" || {
  cat "$work/build.log" >&2
  fail "the example does not build"
}
[[ -f $work/moved/share/ultrasketch/proto/ultrasketch/v1/generation.proto ]] || fail "no protos"

"$build/bin/ultrasketchd" --model "sketch=$model" --listen 127.0.0.1:0 --metrics-listen none \
  --threads 1 2>"$work/server.log" &
server=$!
trap 'kill "$server"; wait "$server" || true' EXIT
for ((i = 0; i < 600; i++)); do
  grep -q event=serving "$work/server.log" && break
  kill -0 "$server" || fail "the server ended: $(cat "$work/server.log")"
  sleep 0.1
done
address=$(sed -n 's/.*event=serving.* listen=\([^ ]*\).*/\1/p' "$work/server.log")

[[ $("$work/example/list_models" "$address") == "sketch MODEL_STATE_READY" ]] ||
  fail "list_models printed something else"
"$work/example/stream" "$address" "It was a dark night" >"$work/text" 2>"$work/usage"
grep -qE '^[0-9]+ tokens, seed [0-9]+$' "$work/usage" || fail "stream said: $(cat "$work/usage")"
[[ -s $work/text ]] || fail "stream printed nothing"
