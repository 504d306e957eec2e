#!/usr/bin/env bash
# Serves a finetuned model of half a bit per weight beside a dense model and that model compressed on
# the spot, and streams text from all three; and asks a public chat model of half a bit.
# usage: demo.sh BIN_DIR, the folder of `ultrasketch` and `ultrasketchd`. ./run.sh demo calls it.
set -euo pipefail

usage() {
  printf 'usage: %s BIN_DIR\n' "$0" >&2
  exit 2
}
(($# == 1)) || usage
bin=$(cd "$1" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

readonly ULTRASKETCH=$bin/ultrasketch ULTRASKETCHD=$bin/ultrasketchd
readonly SKETCH=deploy/models/classics-20m-sketch DENSE=deploy/models/classics-6m
readonly CHAT=deploy/models/smollm2-135m-sketch
readonly TEXT=deploy/demo/sample.txt QUESTION='Give me three tips for sleeping better.'
readonly PROMPT='It was towards the end of a cold November that'
readonly MAX_TOKENS=64 SEED=7 START_SECONDS=30

bold='' dim='' plain=''
if [[ -t 1 && ${TERM:-dumb} != dumb ]]; then
  bold=$'\033[1m' dim=$'\033[2m' plain=$'\033[0m'
fi
say() { printf '\n%s==> %s%s\n' "$bold" "$*" "$plain"; }
die() {
  printf 'demo: %s\n' "$*" >&2
  exit 1
}

for program in "$ULTRASKETCH" "$ULTRASKETCHD"; do
  [[ -x $program ]] || die "$program is not there: build first with ./run.sh build"
done

work=$(mktemp -d)
server_pid=''
cleanup() {
  local status=$?
  trap - EXIT INT TERM
  if [[ -n $server_pid ]]; then
    kill -KILL "$server_pid" 2>/dev/null || true
    wait "$server_pid" 2>/dev/null || true
  fi
  if ((status != 0)) && [[ -s $work/server.log ]]; then
    printf 'demo: the server said:\n' >&2
    cat "$work/server.log" >&2
  fi
  rm -rf "$work"
  exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# json_number KEY FILE: the first number of that key in pretty-printed JSON.
json_number() {
  local value
  value=$(sed -nE "s/^ *\"$1\": ([-+.0-9eE]+),?\$/\\1/p" "$2" | head -n 1)
  [[ -n $value ]] || die "no number \"$1\" in $2: $(cat "$2")"
  printf '%s' "$value"
}

# http_get HOST:PORT PATH
http_get() {
  if command -v curl >/dev/null; then
    curl --silent --show-error --fail --noproxy '*' "http://$1$2"
    return
  fi
  local connection
  exec {connection}<>"/dev/tcp/${1%:*}/${1##*:}"
  printf 'GET %s HTTP/1.0\r\nHost: %s\r\n\r\n' "$2" "$1" >&"$connection"
  sed '1,/^\r*$/d' <&"$connection"
  exec {connection}>&-
}

# field NAME: the first value of that field in the server's log.
field() { sed -nE "s/.*[[:space:]]$1=([^[:space:]]+).*/\\1/p" "$work/server.log" | head -n 1; }

start_server() {
  "$ULTRASKETCHD" --listen 127.0.0.1:0 --metrics-listen 127.0.0.1:0 \
    --model "sketch=$SKETCH" --model "dense=$DENSE" --model "compressed=$work/compressed" \
    --model "chat=$CHAT" \
    2>"$work/server.log" &
  server_pid=$!
  local deadline=$((SECONDS + START_SECONDS))
  until grep -q 'event=serving' "$work/server.log"; do
    kill -0 "$server_pid" 2>/dev/null || die "the server ended at its start"
    ((SECONDS < deadline)) || die "the server was not ready after $START_SECONDS s"
    sleep 0.05
  done
}

stop_server() {
  local status=0
  kill -TERM "$server_pid"
  wait "$server_pid" || status=$?
  server_pid=''
  ((status == 0)) || die "the server ended with exit code $status"
}

measure() { # measure NAME DIR
  "$ULTRASKETCH" inspect "$2" --json >"$work/$1.inspect"
  "$ULTRASKETCH" eval --model "$2" --text "$TEXT" --json >"$work/$1.eval"
}

generate() { # generate NAME MAX_TOKENS
  printf '\n%s%s%s\n%s%s%s' "$bold" "$1" "$plain" "$dim" "$PROMPT" "$plain"
  # The text goes straight to the terminal; the summary is needed again for the table.
  "$ULTRASKETCH" generate --target "$address" --model "$1" --prompt "$PROMPT" \
    --max-tokens "$2" --temperature 0.8 --seed "$SEED" 2>"$work/$1.summary" ||
    die "generating failed: $(cat "$work/$1.summary")"
  printf '%s%s%s\n' "$dim" "$(cat "$work/$1.summary")" "$plain"
}

row() { # row LABEL FORMAT SKETCH DENSE COMPRESSED
  # shellcheck disable=SC2059  # the format is ours
  printf "  %-32s $2  $2  $2\n" "$1" "$3" "$4" "$5"
}

say "compressing $DENSE to half a bit per weight"
# A quarter of the usual calibration text keeps the demo short.
"$ULTRASKETCH" compress --model "$DENSE" --out "$work/compressed" --calibration-windows 32 --json \
  >"$work/compress"
printf 'done in %.1f s, fitted to %d tokens that the model wrote itself\n' \
  "$(json_number seconds "$work/compress")" "$(json_number calibration_tokens "$work/compress")"

say "measuring perplexity on $TEXT"
measure sketch "$SKETCH"
measure dense "$DENSE"
measure compressed "$work/compressed"
printf 'done: %d tokens each\n' "$(json_number tokens "$work/dense.eval")"

say "serving the three, and a chat model, over gRPC"
start_server
address=$(field listen)
metrics_address=$(field metrics)
printf 'gRPC on %s, metrics on http://%s/metrics\n' "$address" "$metrics_address"
generate sketch 150
generate dense "$MAX_TOKENS"
generate compressed "$MAX_TOKENS"

say "a conversation with SmolLM2-135M-Instruct at half a bit"
"$ULTRASKETCH" inspect "$CHAT" --json >"$work/chat.inspect"
printf '%d parameters in %d bytes\n\n%s%s%s\n' "$(json_number parameters "$work/chat.inspect")" \
  "$(json_number bytes "$work/chat.inspect")" "$dim" "$QUESTION" "$plain"
"$ULTRASKETCH" chat --target "$address" --model chat --max-tokens 120 --seed "$SEED" <<<"$QUESTION"
cat <<TEXT

  It answers in whole sentences about the subject, and has lost most of what the dense model knows:
  $CHAT/README.md says what half a bit keeps. Your turn:

      $ULTRASKETCH chat --model $CHAT
TEXT

say "how they compare"
row '' '%12s' sketch dense compressed
all() { # all LABEL FORMAT KEY KIND
  row "$1" "$2" "$(json_number "$3" "$work/sketch.$4")" "$(json_number "$3" "$work/dense.$4")" \
    "$(json_number "$3" "$work/compressed.$4")"
}
all 'parameters' '%12d' parameters inspect
all 'size on disk, bytes' '%12d' bytes inspect
all 'bits per weight, linear layers' '%12.3f' bits_per_weight_linear inspect
all 'bits per weight, whole file' '%12.3f' bits_per_weight_file inspect
all 'perplexity of the text' '%12.1f' perplexity eval
first_token() { sed -nE 's/.*first after ([.0-9]+) ms.*/\1/p' "$work/$1.summary"; }
rate() { sed -nE 's/.*then ([.0-9]+) tokens\/s.*/\1/p' "$work/$1.summary"; }
row 'time to first token, ms' '%12.1f' "$(first_token sketch)" "$(first_token dense)" \
  "$(first_token compressed)"
row 'tokens per second, one stream' '%12.0f' "$(rate sketch)" "$(rate dense)" "$(rate compressed)"
cat <<'TEXT'

  The sketch has more than three times the parameters of the dense model in less than half its bytes,
  most of them the embedding table in int8. It was compressed from a model of 41 MB and finetuned to
  predict what that one does. The third model shows what compression alone leaves: the look of the
  text, but not its sense.
TEXT

say "from the server's metrics"
http_get "$metrics_address" /metrics >"$work/metrics"
grep -E '^ultrasketch_(requests_total\{code="OK"|(prompt_tokens_total|generated_tokens_total|bytes_per_weight|kv_blocks|time_to_first_token_seconds_(sum|count))[{ ])' \
  "$work/metrics" || die "the metrics page has none of the expected lines"

say "stopping"
stop_server
printf 'the server drained and ended cleanly\n'
