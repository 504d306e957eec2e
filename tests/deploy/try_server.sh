# shellcheck shell=bash
# Sourced by the tests that run the server where it was installed.

# try_server WORK PROGRAMS MODELS [PREFIX]...: starts PROGRAMS/ultrasketchd behind PREFIX (a chroot), with the option
# MODELS; asks its health and for a text, and ends it by SIGTERM, upon which it must exit with 0.
try_server() {
  local work=$1 programs=$2 models=$3 server address
  shift 3
  : >"$work/server.log"
  "$@" "$programs/ultrasketchd" --listen=127.0.0.1:0 --metrics-listen=127.0.0.1:0 "$models" 2>>"$work/server.log" &
  server=$!
  for _ in $(seq 300); do
    grep -q event=serving "$work/server.log" && break
    kill -0 "$server" 2>/dev/null || { cat "$work/server.log" >&2; return 1; }
    sleep 0.2
  done
  address=$(sed -nE 's/.*event=serving listen=([^ ]+).*/\1/p' "$work/server.log")
  "$@" "$programs/ultrasketch" health --target "$address"
  "$@" "$programs/ultrasketch" generate --target "$address" --prompt 'It was a dark night' --max-tokens 8
  kill -TERM "$server"
  wait "$server"
}
