"""The live server, and a fake one that fails as it is told."""

import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2_grpc

from ultrasketch import Client
from ultrasketch.v1 import generation_pb2

REPOSITORY = pathlib.Path(__file__).resolve().parents[3]
MODELS = REPOSITORY / "deploy/models"
SAMPLE_TEXT = REPOSITORY / "deploy/demo/sample.txt"
BIN = pathlib.Path(os.environ["ULTRASKETCH_BIN"])


class LiveServer:
    """ultrasketchd on free ports."""

    def __init__(self, log: pathlib.Path, *options: str, wait_for: str = "serving") -> None:
        self._log = log
        with log.open("w") as file:
            self._process = subprocess.Popen(
                [
                    BIN / "ultrasketchd",
                    *("--listen", "127.0.0.1:0"),
                    *("--metrics-listen", "127.0.0.1:0"),
                    *("--threads", "1"),
                    *options,
                ],
                stderr=file,
                stdout=file,
            )
        line = self._wait_for_event(wait_for)
        self.target = self._value(line, "listen")
        self.metrics = self._value(line, "metrics")

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=60)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(timeout=60)

    def _wait_for_event(self, event: str) -> str:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            for line in self._log.read_text().splitlines():
                if f"event={event} " in line:
                    return line
            assert self._process.poll() is None, self._log.read_text()
            time.sleep(0.02)
        raise TimeoutError(self._log.read_text())

    @staticmethod
    def _value(line: str, key: str) -> str:
        match = re.search(rf"\b{key}=(\S+)", line)
        assert match is not None, line
        return match.group(1)


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("live")
    repository = folder / "models"
    repository.mkdir()
    (repository / "spare").symlink_to(MODELS / "classics-20m-sketch")
    broken = repository / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    chat = repository / "chat"
    shutil.copytree(MODELS / "classics-20m-sketch", chat)
    (chat / "chat_template.jinja").write_text(
        "{% for message in messages %}[{{ message.role }}] {{ message.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    server = LiveServer(
        folder / "log",
        *("--model", f"sketch={MODELS / 'classics-20m-sketch'}"),
        *("--model-repository", str(repository)),
    )
    yield server
    server.stop()


@pytest.fixture
def client(live: LiveServer) -> Iterator[Client]:
    with Client(live.target) as client:
        yield client


class Refusal:
    """A status with its details, as the server sends it."""

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str = "",
        delay: float | None = None,
        pushback: str | None = None,
    ) -> None:
        status = status_pb2.Status(code=code.value[0], message="refused")
        if reason:
            status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason))
        if delay is not None:
            duration = Duration()
            duration.FromNanoseconds(int(delay * 1e9))
            status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=duration))
        self._code = code
        self._metadata: list[tuple[str, str | bytes]] = [
            ("grpc-status-details-bin", status.SerializeToString())
        ]
        if pushback is not None:
            self._metadata.append(("grpc-retry-pushback-ms", pushback))

    def abort(self, context: grpc.ServicerContext) -> None:
        context.set_trailing_metadata(tuple(self._metadata))
        context.abort(self._code, "refused")


class FakeServer:
    """Refuses as long as there are refusals, then answers. Records what came, and when."""

    def __init__(self, credentials: grpc.ServerCredentials | None = None, port: int = 0) -> None:
        self.refusals: list[Refusal] = []
        self.break_stream_with: Refusal | None = None
        self.calls: list[dict[str, str]] = []  # the metadata of each
        self.times: list[float] = []
        self._server = grpc.server(
            concurrent.futures.ThreadPoolExecutor(max_workers=8),
            options=[("grpc.so_reuseport", 0)],
        )
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    "ultrasketch.v1.GenerationService",
                    {
                        "Generate": grpc.unary_unary_rpc_method_handler(
                            self._generate,
                            generation_pb2.GenerateRequest.FromString,
                            generation_pb2.GenerateResponse.SerializeToString,
                        ),
                        "GenerateStream": grpc.unary_stream_rpc_method_handler(
                            self._stream,
                            generation_pb2.GenerateRequest.FromString,
                            generation_pb2.GenerateStreamResponse.SerializeToString,
                        ),
                    },
                ),
            )
        )
        self.health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        address = f"localhost:{port}"
        if credentials is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, credentials)
        self.target = f"localhost:{self.port}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait()

    def _on_call(self, context: grpc.ServicerContext) -> None:
        self.times.append(time.monotonic())
        self.calls.append({key: str(value) for key, value in context.invocation_metadata()})
        if self.refusals:
            self.refusals.pop(0).abort(context)

    def _generate(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._on_call(context)
        return generation_pb2.GenerateResponse(
            completions=[generation_pb2.Completion(text=f"answer to {request.text}")]
        )

    def _stream(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        self._on_call(context)
        yield generation_pb2.GenerateStreamResponse(
            delta=generation_pb2.GenerateDelta(index=0, text="begun")
        )
        if self.break_stream_with is not None:
            self.break_stream_with.abort(context)
        yield generation_pb2.GenerateStreamResponse(
            final=generation_pb2.GenerateFinal(
                index=0, finish_reason=generation_pb2.FINISH_REASON_STOP
            )
        )


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    server = FakeServer()
    yield server
    server.stop()


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def run_example(name: str, *arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, REPOSITORY / "client/python/examples" / name, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )
