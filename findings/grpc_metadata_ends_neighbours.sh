#!/usr/bin/env bash
# gRPC 1.51 (grpcio 1.51.3 on PyPI; Debian 12's libgrpc++ is 1.51.1): a call with more metadata than the server takes
# (8 KiB by default) ends the whole connection, and other calls on it fail with that call's error.
#
# Seen, with 12 KiB of metadata in the one call:
#   1.51.3: the call RESOURCE_EXHAUSTED; its neighbour, which sent none, RESOURCE_EXHAUSTED, too
#   1.80.0: the call RESOURCE_EXHAUSTED; its neighbour OK
# So behind a proxy that puts many clients into one connection the metadata's size must be limited there, and a
# RESOURCE_EXHAUSTED may be somebody else's. Exits non-zero when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/calls.py" <<'PYTHON'
import concurrent.futures
import threading

import grpc

has_begun = threading.Event()
may_end = threading.Event()


class Handler(grpc.GenericRpcHandler):
    def service(self, details):
        def answer(request, context):
            if request == b"neighbour":
                has_begun.set()
                may_end.wait(10)
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)


LIMITS = ("grpc.max_metadata_size", "grpc.absolute_max_metadata_size")
server = grpc.server(concurrent.futures.ThreadPoolExecutor(4), options=[(limit, 8 << 10) for limit in LIMITS])
server.add_generic_rpc_handlers((Handler(),))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)])
call = channel.unary_unary("/service/method")


def code(future):
    return future.code().name


neighbour = call.future(b"neighbour", timeout=20)
has_begun.wait(10)
large = call.future(b"large", metadata=[("x-large", "a" * (12 << 10))], timeout=20)
print("the call", code(large), end="; ")
may_end.set()
print("its neighbour", code(neighbour))
server.stop(0)
PYTHON
run() { # run VERSION
  python3 -m venv "$folder/$1"
  "$folder/$1/bin/pip" install --quiet --disable-pip-version-check "grpcio==$1"
  "$folder/$1/bin/python" "$folder/calls.py" 2>/dev/null
}
old=$(run 1.51.3)
new=$(run 1.80.0)
echo "1.51.3: $old"
echo "1.80.0: $new"
[ "$old" = "the call RESOURCE_EXHAUSTED; its neighbour RESOURCE_EXHAUSTED" ] &&
  [ "$new" = "the call RESOURCE_EXHAUSTED; its neighbour OK" ]
