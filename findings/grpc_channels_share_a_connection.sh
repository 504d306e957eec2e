#!/usr/bin/env bash
# grpcio 1.85.3 (PyPI): several channels to one server are expected to be
# several connections. Seen: with equal options they share a single TCP connection, so that
#  1. four channels are one peer to the server, and four only with "grpc.use_local_subchannel_pool";
#  2. the server's limit of streams on a connection holds for all channels together: a call on one channel waits, without
#     an error, as long as a stream on another one takes the place.
# Exits with 0 when both are as seen here, else with 1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check grpcio==1.85.3
"$folder/venv/bin/python" - <<'PYTHON'
import threading
from concurrent import futures

import grpc

peers = set()
release = threading.Event()


class Handler(grpc.GenericRpcHandler):
    def service(self, details):
        def call(request, context):
            peers.add(context.peer())
            if details.method == "/test/Hold":
                release.wait(30)
            return request

        return grpc.unary_unary_rpc_method_handler(call)


server = grpc.server(futures.ThreadPoolExecutor(8), handlers=[Handler()],
                     options=[("grpc.max_concurrent_streams", 1)])
target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
server.start()


def channels(count, options):
    return [grpc.insecure_channel(target, options=options) for _ in range(count)]


def num_peers(options):
    peers.clear()
    for channel in channels(4, options):
        channel.unary_unary("/test/Echo")(b"x", timeout=30)
    return len(peers)


def second_channel_waits(options):
    release.clear()
    first, second = channels(2, options)
    held = first.unary_unary("/test/Hold").future(b"x", timeout=60)
    while not held.running():
        pass
    try:
        # The stream of the first channel is there before this one is asked for.
        threading.Event().wait(1)
        second.unary_unary("/test/Echo")(b"x", timeout=3)
        return False
    except grpc.RpcError as error:
        return error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    finally:
        release.set()
        held.result()


own = [("grpc.use_local_subchannel_pool", 1)]
seen = (num_peers([]), num_peers(own), second_channel_waits([]), second_channel_waits(own))
print("connections of 4 channels: %d, with pools of their own %d; a call waits for another channel's stream: %s, %s" % seen)
server.stop(0)
raise SystemExit(seen != (1, 4, True, False))
PYTHON
