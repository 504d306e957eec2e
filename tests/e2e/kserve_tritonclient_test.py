"""The Open Inference Protocol of a live ultrasketchd, as tritonclient speaks it.

  kserve_tritonclient_test.py ULTRASKETCHD MODEL_FOLDER

Installs this project's Python client and then tritonclient into a virtual environment of their own;
where the package index cannot be reached, the test is skipped (exit code 77).
"""

import contextlib
import io
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import unittest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
PACKAGES = ["tritonclient[grpc]==2.73.0", "numpy==2.4.6"]
SKIPPED = 77
START_SECONDS = 60
MODEL = "sample"


def run_in_environment():
    """Runs this file again with the packages; returns its exit code."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = f"{folder}/bin/python"
        # One after the other: pip does not look for versions that suit both then, as it does not for
        # those who come to need both.
        for packages in ([str(REPOSITORY / "client/python")], PACKAGES):
            install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
                       "--retries", "1", "--timeout", "20", *packages]
            installed = subprocess.run(install, capture_output=True, text=True)
            if installed.returncode != 0:
                print("skipped: the packages could not be installed:",
                      installed.stderr.strip()[-500:])
                return SKIPPED
        return subprocess.run([python, "-B", __file__, *sys.argv[1:]],
                              env={**os.environ, "KSERVE_TEST_HAS_PACKAGES": "1"}).returncode


if not os.environ.get("KSERVE_TEST_HAS_PACKAGES"):
    sys.exit(run_in_environment())

import numpy
import tritonclient.grpc
import tritonclient.grpc.aio
import ultrasketch
from tritonclient.utils import InferenceServerException


class Server:
    """ultrasketchd on a free port, until it is closed."""

    def __init__(self, program, folder):
        self._log = tempfile.NamedTemporaryFile()
        self._process = subprocess.Popen(
            [program, "--model", f"{MODEL}={folder}", "--listen", "127.0.0.1:0",
             "--metrics-listen", "none"], stdout=self._log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            found = re.search(r"event=serving listen=(\S+)", pathlib.Path(self._log.name).read_text())
            if found:
                self.address = found.group(1)
                return
            time.sleep(0.05)
        self.close()
        raise RuntimeError("the server does not serve: " + pathlib.Path(self._log.name).read_text())

    def close(self):
        self._process.send_signal(signal.SIGTERM)
        self._process.wait()
        self._log.close()


def tensor(name, value, datatype):
    array = numpy.array(value)
    result = tritonclient.grpc.InferInput(name, list(array.shape), datatype)
    result.set_data_from_numpy(array)
    return result


def text_input(text):
    return tensor("text_input", [text.encode()], "BYTES")


class KserveTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server(*ARGUMENTS)
        cls.client = tritonclient.grpc.InferenceServerClient(cls.server.address)

    @classmethod
    def tearDownClass(cls):
        cls.client.close()
        cls.server.close()

    def infer(self, inputs, **options):
        return self.client.infer(MODEL, inputs, **options)

    def stream(self, requests):
        """All results of these requests, by their ids, as (text, error, is_final)."""
        results = {}
        finals = []

        def on_result(result, error):
            if error is not None:
                results.setdefault("", []).append(("", str(error), True))
                finals.append("")
                return
            response = result.get_response()
            is_final = response.parameters["triton_final_response"].bool_param
            text = result.as_numpy("text_output")[0].decode()
            results.setdefault(response.id, []).append((text, "", is_final))
            if is_final:
                finals.append(response.id)

        client = tritonclient.grpc.InferenceServerClient(self.server.address)
        client.start_stream(on_result)
        for request in requests:
            client.async_stream_infer(MODEL, enable_empty_final_response=True, **request)
        client.stop_stream()
        client.close()
        self.assertEqual(len(finals), len(requests))
        return results

    def test_server_and_model_are_there(self):
        self.assertTrue(self.client.is_server_live())
        self.assertTrue(self.client.is_server_ready())
        self.assertTrue(self.client.is_model_ready(MODEL))
        self.assertTrue(self.client.is_model_ready(MODEL, "1"))
        self.assertFalse(self.client.is_model_ready("other"))
        self.assertEqual(self.client.get_server_metadata().name, "ultrasketch")
        metadata = self.client.get_model_metadata(MODEL)
        self.assertEqual(metadata.name, MODEL)
        self.assertIn("text_input", [entry.name for entry in metadata.inputs])
        self.assertEqual(metadata.outputs[0].name, "text_output")

    def test_text_comes_back_as_an_array(self):
        result = self.infer([text_input("It was a dark night")], request_id="7",
                            parameters={"max_tokens": 10, "temperature": 0})
        texts = result.as_numpy("text_output")
        self.assertEqual(texts.shape, (1,))
        self.assertGreater(len(texts[0].decode()), 10)
        self.assertEqual(result.get_response().id, "7")

    def test_options_are_parameters_or_tensors_or_json(self):
        expected = self.infer([text_input("The old man")],
                              parameters={"max_tokens": 12, "temperature": 0.8, "top_p": 0.9, "seed": 3}
                              ).as_numpy("text_output")[0]
        by_tensor = self.infer([
            text_input("The old man"), tensor("max_tokens", numpy.array([12], numpy.int32), "INT32"),
            tensor("temperature", numpy.array([0.8], numpy.float32), "FP32"),
            tensor("top_p", numpy.array([0.9], numpy.float32), "FP32"),
            tensor("seed", numpy.array([3], numpy.uint64), "UINT64")]).as_numpy("text_output")[0]
        self.assertEqual(by_tensor, expected)
        json = b'{"max_tokens": "12", "temperature": "0.8", "top_p": "0.9", "seed": 3}'
        by_json = self.infer([text_input("The old man"),
                              tensor("sampling_parameters", [json], "BYTES")]).as_numpy("text_output")[0]
        self.assertEqual(by_json, expected)

    def test_more_outputs_when_asked_for(self):
        result = self.infer([
            text_input("The old man"), tensor("max_tokens", numpy.array([5], numpy.int32), "INT32"),
            tensor("n", numpy.array([2], numpy.int32), "INT32"),
            tensor("ignore_eos", numpy.array([True]), "BOOL"),
            tensor("return_finish_reason", numpy.array([True]), "BOOL"),
            tensor("return_num_output_tokens", numpy.array([True]), "BOOL")])
        self.assertEqual(result.as_numpy("text_output").shape, (2,))
        self.assertEqual(list(result.as_numpy("finish_reason")), [b"length", b"length"])
        self.assertEqual(list(result.as_numpy("num_output_tokens")), [5, 5])

    def test_errors_say_what_is_wrong(self):
        with self.assertRaisesRegex(InferenceServerException, "NOT_FOUND.*other"):
            self.client.infer("other", [text_input("x")])
        with self.assertRaisesRegex(InferenceServerException, "INVALID_ARGUMENT.*text_input: required"):
            self.infer([])
        with self.assertRaisesRegex(InferenceServerException, "parameters: \"best_of\""):
            self.infer([text_input("x")], parameters={"best_of": 2})
        with self.assertRaisesRegex(InferenceServerException, "top_p"):
            self.infer([text_input("x")], parameters={"top_p": 2.0})

    def test_a_stream_has_the_same_text_in_pieces(self):
        parameters = {"max_tokens": 20, "temperature": 0}
        whole = self.infer([text_input("The old man")], parameters=parameters).as_numpy("text_output")[0]
        request = {"inputs": [text_input("The old man"), tensor("stream", numpy.array([True]), "BOOL")],
                   "parameters": parameters}
        results = self.stream([{**request, "request_id": str(i)} for i in range(8)])
        self.assertEqual(len(results), 8)
        for pieces in results.values():
            self.assertEqual("".join(text for text, _, _ in pieces), whole.decode())
            self.assertEqual([is_final for _, _, is_final in pieces].count(True), 1)

    def test_an_error_in_a_stream_ends_no_other_request(self):
        results = self.stream([
            {"inputs": [text_input("x")], "request_id": "a", "parameters": {"top_p": 2.0}},
            {"inputs": [text_input("x")], "request_id": "b", "parameters": {"max_tokens": 3}}])
        self.assertIn("top_p", results[""][0][1])
        self.assertTrue(results["b"][-1][2])

    def test_the_repository_is_listed_and_loads_and_unloads(self):
        def states():
            return {entry.name: entry.state for entry in self.client.get_model_repository_index().models}

        self.assertEqual(states(), {MODEL: "READY"})
        self.client.unload_model(MODEL)
        self.assertEqual(states(), {})
        self.assertFalse(self.client.is_model_ready(MODEL))
        self.client.load_model(MODEL)
        self.assertTrue(self.client.is_model_ready(MODEL))

    def test_the_projects_own_client_lives_beside_it(self):
        with ultrasketch.Client(self.server.address) as client:
            self.assertEqual(client.health(MODEL), "SERVING")
            text = client.generate("The old man", model=MODEL, max_tokens=12, temperature=0).text
        result = self.infer([text_input("The old man")],
                            parameters={"max_tokens": 12, "temperature": 0})
        self.assertEqual(result.as_numpy("text_output")[0].decode(), text)

    def test_the_code_of_the_page_runs(self):
        page = REPOSITORY / "docs/kserve.md"
        (block,) = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
        code = block.replace("localhost:8001", self.server.address).replace('"sketch"', repr(MODEL))
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, {})
        self.assertGreater(len(printed.getvalue()), 20)


if __name__ == "__main__":
    ARGUMENTS = sys.argv[1:3]
    unittest.main(argv=sys.argv[:1])
