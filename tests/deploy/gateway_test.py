"""The gateway's configuration in a real Envoy, before a real server. Runs with the Python of the tools, which has
grpcio.

usage: gateway_test.py ENVOY ULTRASKETCHD [unittest's arguments]
"""

import contextlib
import http.client
import json
import pathlib
import ssl
import subprocess
import sys
import tempfile
import unittest

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

import live_prometheus
from live_prometheus import ROOT

GATEWAY = ROOT / "deploy/gateway"
GENERATE = "/ultrasketch.v1.GenerationService/Generate"
STREAM = "/ultrasketch.v1.GenerationService/GenerateStream"
REQUEST = {"model": "sketch", "text": "It was a dark night", "max_tokens": 8, "seed": "7"}

envoy = ultrasketchd = None


class Gateway:
    """An Envoy with the repository's configuration, but for addresses, paths and what `changes` says."""

    def __init__(self, folder, upstream_port, changes=()):
        self.folder = folder
        folder.mkdir()
        subprocess.run([GATEWAY / "make_descriptor.sh", folder / "ultrasketch.pb"], check=True)
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                        "-keyout", folder / "tls.key", "-out", folder / "tls.crt", "-days", "2", "-subj",
                        "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
                       check=True, capture_output=True)
        text = (GATEWAY / "envoy.yaml").read_text()
        for before, after in [("/etc/envoy/", f"{folder}/"), ("/etc/tls/", f"{folder}/"),
                              ("0.0.0.0, port_value: 8443", "127.0.0.1, port_value: 0"),
                              ("port_value: 9901", "port_value: 0"),
                              ("address: ultrasketch, port_value: 8001",
                               f"address: 127.0.0.1, port_value: {upstream_port}"), *changes]:
            if before not in text:
                raise RuntimeError(f"not in envoy.yaml: {before}")
            text = text.replace(before, after)
        (folder / "envoy.yaml").write_text(text)
        self.process = live_prometheus.Process(
            [envoy, "--config-path", folder / "envoy.yaml", "--concurrency", "1", "--use-dynamic-base-id",
             "--admin-address-path", folder / "admin"], folder / "log")
        try:
            self.process.wait_for("starting workers")
            # Sent to servers that no check has found healthy yet, a call would be one to chance.
            live_prometheus.wait_until(lambda: "health_flags::healthy" in self.ask("/clusters"), "a healthy server")
            (listener,) = json.loads(self.ask("/listeners?format=json"))["listener_statuses"]
            self.port = listener["local_address"]["socket_address"]["port_value"]
        except BaseException:
            self.process.stop()
            raise

    def ask(self, path):
        """The administration's answer."""
        host, port = (self.folder / "admin").read_text().rsplit(":", 1)
        with contextlib.closing(http.client.HTTPConnection(host, int(port), timeout=60)) as connection:
            connection.request("GET", path)
            return connection.getresponse().read().decode()

    def post(self, path, body):
        """(status, headers, text) of a call with JSON."""
        context = ssl.create_default_context(cafile=self.folder / "tls.crt")
        with contextlib.closing(
                http.client.HTTPSConnection("localhost", self.port, timeout=120, context=context)) as connection:
            connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read().decode()

    def channel(self):
        credentials = grpc.ssl_channel_credentials((self.folder / "tls.crt").read_bytes())
        return grpc.secure_channel(f"localhost:{self.port}", credentials)

    def messages(self):
        """Classes of messages, by full name."""
        files = descriptor_pb2.FileDescriptorSet.FromString((self.folder / "ultrasketch.pb").read_bytes())
        pool = descriptor_pool.DescriptorPool()
        for file in files.file:
            pool.Add(file)
        return lambda name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"ultrasketch.v1.{name}"))


class GatewayTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        cls.server = live_prometheus.Process(
            [ultrasketchd, "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0",
             "--model", f"sketch={ROOT}/deploy/models/classics-20m-sketch"], cls.folder / "server.log")
        cls.addClassCleanup(cls.server.stop)
        cls.upstream_port = cls.server.wait_for(r"event=serving listen=\S+:(\d+)\s")[1]
        cls.gateway = Gateway(cls.folder / "gateway", cls.upstream_port)
        cls.addClassCleanup(cls.gateway.process.stop)

    def test_the_configuration_is_valid_and_has_nothing_deprecated(self):
        result = subprocess.run([envoy, "--mode", "validate", "--config-path", self.gateway.folder / "envoy.yaml"],
                                capture_output=True, text=True)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertNotIn("eprecated", result.stderr)

    def test_json_and_grpc_give_the_same(self):
        status, headers, text = self.gateway.post(GENERATE, REQUEST)
        self.assertEqual((status, headers["content-type"]), (200, "application/json"), text)
        answer = json.loads(text)
        self.assertEqual(answer["completions"][0]["finish_reason"], "FINISH_REASON_LENGTH")
        self.assertEqual(answer["usage"]["completion_tokens"], 8)

        message = self.gateway.messages()
        request = message("GenerateRequest")(model="sketch", text=REQUEST["text"], max_tokens=8, seed=7)
        with self.gateway.channel() as channel:
            call = channel.unary_unary(GENERATE, message("GenerateRequest").SerializeToString,
                                       message("GenerateResponse").FromString)
            self.assertEqual(call(request, timeout=120).completions[0].text, answer["completions"][0]["text"])
            stream = channel.unary_stream(STREAM, message("GenerateRequest").SerializeToString,
                                          message("GenerateStreamResponse").FromString)
            pieces = [each.delta.text for each in stream(request, timeout=120)]
        self.assertEqual("".join(pieces), answer["completions"][0]["text"])

    def test_a_stream_is_a_json_object_a_line(self):
        status, _, text = self.gateway.post(STREAM, REQUEST)
        self.assertEqual(status, 200, text)
        lines = [json.loads(line) for line in text.splitlines()]
        self.assertGreater(len(lines), 2)
        self.assertIn("delta", lines[0])
        self.assertEqual(lines[-1]["final"]["usage"]["completion_tokens"], 8)

    def test_errors_come_as_http_status_and_json_with_details(self):
        status, _, text = self.gateway.post(GENERATE, {**REQUEST, "model": "nonsense"})
        self.assertEqual(status, 404)
        self.assertEqual(json.loads(text)["details"][0]["reason"], "MODEL_NOT_FOUND")
        status, _, text = self.gateway.post(GENERATE, {**REQUEST, "temperature": -1})
        self.assertEqual(status, 400)
        self.assertEqual(json.loads(text)["details"][0]["field_violations"][0]["field"], "temperature")

    def test_what_is_not_for_clients_does_not_pass(self):
        self.assertEqual(self.gateway.post("/ultrasketch.v1.ModelService/ListModels", {})[0], 200)
        for path in ("/ultrasketch.v1.ModelService/LoadModel", "/ultrasketch.v1.ModelService/UnloadModel",
                     "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "/metrics",
                     GENERATE + "X", "/ultrasketch.v1.GenerationService/..%2fModelService/LoadModel"):
            self.assertIn(self.gateway.post(path, {})[0], (400, 404), path)
        with self.gateway.channel() as channel:
            for path in ("/ultrasketch.v1.ModelService/LoadModel", "/inference.GRPCInferenceService/RepositoryModelLoad",
                         "/inference.GRPCInferenceService/RepositoryModelUnload"):
                with self.assertRaises(grpc.RpcError) as raised:
                    channel.unary_unary(path)(b"", timeout=120)
                self.assertEqual(raised.exception.code(), grpc.StatusCode.UNIMPLEMENTED, path)
                # Envoy's answer, not a server's.
                self.assertNotIn("x-envoy-upstream-service-time", dict(raised.exception.initial_metadata()))

    def test_kserves_protocol_passes(self):
        with self.gateway.channel() as channel:
            # {ready: true}
            self.assertEqual(channel.unary_unary("/inference.GRPCInferenceService/ServerReady")(b"", timeout=120),
                             b"\x08\x01")

    def test_more_calls_than_the_limit_are_refused(self):
        limited = Gateway(self.folder / "limited", self.upstream_port, [
            ("{max_tokens: 200, tokens_per_fill: 100, fill_interval: 1s}",
             "{max_tokens: 3, tokens_per_fill: 1, fill_interval: 3600s}")])
        self.addCleanup(limited.process.stop)
        self.assertEqual([limited.post(GENERATE, REQUEST)[0] for _ in range(5)], [200, 200, 200, 429, 429])
        with limited.channel() as channel:
            call = channel.unary_unary("/grpc.health.v1.Health/Check")
            with self.assertRaises(grpc.RpcError) as raised:
                call(b"", timeout=120)
            self.assertEqual(raised.exception.code(), grpc.StatusCode.RESOURCE_EXHAUSTED)

    def test_it_speaks_tls_only(self):
        connection = http.client.HTTPConnection("localhost", self.gateway.port, timeout=120)
        self.addCleanup(connection.close)
        with self.assertRaises((ConnectionError, http.client.BadStatusLine)):
            connection.request("GET", "/healthz")
            connection.getresponse()


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    envoy, ultrasketchd = sys.argv[1:3]
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]], verbosity=2)
