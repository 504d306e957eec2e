"""The client that blocks."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import grpc

from . import _messages, _methods
from ._channel import CallState, Settings
from ._errors import UltrasketchError
from ._methods import Method, Request, Response
from ._stream import Stream
from ._types import (
    CallOptions,
    ChatMessage,
    ClientOptions,
    DetokenizeOptions,
    GenerateDelta,
    GenerateOptions,
    GenerateResponse,
    Model,
    ModelOptions,
    Score,
    ScoreOptions,
    SketchOverhead,
    Tokens,
)
from ._waiting import Polling
from .v1 import generation_pb2, model_pb2


class GenerateStream(Stream):
    """Deltas as they arrive:

        with client.stream("It was a dark and stormy night", max_tokens=64) as stream:
            for delta in stream:
                print(delta.text, end="", flush=True)
        print(stream.response.usage)

    Leaving the loop or the `with` before the end cancels the call, and the server frees what it
    held. One thread reads; `cancel` may be called from any.
    """

    def __init__(self, start: Callable[[], Any], state: CallState) -> None:
        super().__init__(start, state)
        self._cancelled = threading.Event()

    def read(self) -> GenerateResponse:
        """Reads what is left and returns the whole."""
        for _ in self:
            pass
        return self.response

    def cancel(self) -> None:
        """A reader in another thread gets Cancelled. Of a finished stream: nothing happens."""
        self._cancelled.set()
        self._call.cancel()

    def __iter__(self) -> Iterator[GenerateDelta]:
        try:
            while (delta := self._next_delta()) is not None:
                yield delta
        finally:
            if not self._is_finished:
                self.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._is_finished:
            self.cancel()

    def _next_delta(self) -> GenerateDelta | None:
        while (message := self._next_message()) is not None:
            if (delta := self._streamed.add(message)) is not None:
                return delta
        return None

    def _next_message(self) -> generation_pb2.GenerateStreamResponse | None:
        while not self._is_finished:
            try:
                message: generation_pb2.GenerateStreamResponse = next(self._call)
            except StopIteration:
                self._on_end()
            except grpc.RpcError as error:
                self._wait_to_retry(error)
            else:
                self._has_begun = True
                return message
        return None

    def _wait_to_retry(self, error: grpc.RpcError) -> None:
        """Starts the call again after a while, or raises."""
        if not self._cancelled.wait(self._retry_delay(error)):
            self._call = self._start()
        if self._cancelled.is_set():
            self._call.cancel()
            raise self._cancelled_error()


class Client:
    """Calls of one server, or of replicas of it.

        with Client("localhost:8001") as client:
            print(client.generate("It was a dark and stormy night", max_tokens=64).text)

    `target` is HOST:PORT, unix:PATH, dns:///NAME:PORT, ipv4:ADDRESS:PORT,ADDRESS:PORT or any other
    gRPC target. The connection is made at the first call, and again whenever it was lost.
    Thread-safe. A process that forks must do so before it makes a client.

    Every call raises a kind of UltrasketchError when it fails, and TypeError or ValueError for
    arguments that cannot be sent.
    """

    def __init__(self, target: str, **options: Unpack[ClientOptions]) -> None:
        self._settings = Settings(target, options)
        credentials = self._settings.credentials()
        channel_options = self._settings.channel_options()
        self._channel = (
            grpc.insecure_channel(target, channel_options)
            if credentials is None
            else grpc.secure_channel(target, credentials, channel_options)
        )

    def close(self) -> None:
        """Cancels the calls in flight."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def generate(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        messages: Sequence[ChatMessage] | None = None,
        add_generation_prompt: bool | None = None,
        **options: Unpack[GenerateOptions],
    ) -> GenerateResponse:
        """The whole completion at once, of a text, of token ids or of a conversation."""
        request = _messages.generate_request(prompt, messages, add_generation_prompt, options)
        return _messages.generate_response(self._call(_methods.GENERATE, request, options))

    def stream(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        messages: Sequence[ChatMessage] | None = None,
        add_generation_prompt: bool | None = None,
        **options: Unpack[GenerateOptions],
    ) -> GenerateStream:
        """The same as it arrives. Errors are raised by the stream's iterator."""
        request = _messages.generate_request(prompt, messages, add_generation_prompt, options)
        method = _methods.GENERATE_STREAM
        call = self._channel.unary_stream(
            method.path, method.request.SerializeToString, method.response.FromString
        )
        state = CallState(self._settings, options)
        return GenerateStream(
            lambda: call(request, timeout=state.seconds_left(), metadata=state.metadata()), state
        )

    def score(
        self,
        text: str | Sequence[int] | None = None,
        *,
        messages: Sequence[ChatMessage] | None = None,
        add_generation_prompt: bool | None = None,
        **options: Unpack[ScoreOptions],
    ) -> Score:
        """Log-probabilities of a text under the model."""
        request = _messages.score_request(text, messages, add_generation_prompt, options)
        return _messages.score(self._call(_methods.SCORE, request, options))

    def tokenize(
        self,
        text: str | None = None,
        *,
        messages: Sequence[ChatMessage] | None = None,
        add_generation_prompt: bool | None = None,
        **options: Unpack[ModelOptions],
    ) -> Tokens:
        request = _messages.tokenize_request(text, messages, add_generation_prompt, options)
        return _messages.tokens(self._call(_methods.TOKENIZE, request, options))

    def detokenize(self, token_ids: Iterable[int], **options: Unpack[DetokenizeOptions]) -> str:
        request = _messages.detokenize_request(token_ids, options)
        return self._call(_methods.DETOKENIZE, request, options).text

    def list_models(self, **options: Unpack[CallOptions]) -> tuple[Model, ...]:
        """By name."""
        response = self._call(_methods.LIST_MODELS, model_pb2.ListModelsRequest(), options)
        return tuple(map(_messages.model, response.models))

    def get_model(self, name: str, **options: Unpack[CallOptions]) -> Model:
        request = model_pb2.GetModelRequest(name=name)
        return _messages.model(self._call(_methods.GET_MODEL, request, options))

    def load_model(self, name: str, **options: Unpack[CallOptions]) -> Model:
        """Returns when the model serves, or raises why it does not. Loading goes on when the caller
        leaves."""
        request = model_pb2.LoadModelRequest(name=name)
        return _messages.model(self._call(_methods.LOAD_MODEL, request, options, may_retry=False))

    def unload_model(self, name: str, **options: Unpack[CallOptions]) -> None:
        """Returns when requests in flight have finished and the memory is free."""
        request = model_pb2.UnloadModelRequest(name=name)
        self._call(_methods.UNLOAD_MODEL, request, options, may_retry=False)

    def measure_overhead(self, name: str, **options: Unpack[CallOptions]) -> SketchOverhead:
        """Measures anew what a READY model's compression does to the time of its steps: a few
        seconds at most. FailedPrecondition for a model that is not compressed."""
        request = model_pb2.MeasureOverheadRequest(name=name)
        return _messages.sketch_overhead(self._call(_methods.MEASURE_OVERHEAD, request, options))

    def health(self, service: str = "", **options: Unpack[CallOptions]) -> str:
        """What the server says of itself (""), of a model or of a service: "SERVING",
        "NOT_SERVING". NotFound for a name that it does not know."""
        request = _methods.health_request(service)
        return _methods.health_name(self._call(_methods.HEALTH_CHECK, request, options))

    def wait_ready(self, model: str = "", *, timeout: float = 60.0) -> None:
        """Returns when the server, or one model, serves. DeadlineExceeded says what it waited for;
        ModelFailed, why the model could not be loaded."""
        polling = Polling(model, timeout)
        while True:
            try:
                options: CallOptions = {"timeout": polling.call_timeout()}
                health = self._call(
                    _methods.HEALTH_CHECK, _methods.health_request(model), options, may_retry=False
                )
                if polling.is_ready(_methods.health_name(health)):
                    return
                if model:
                    request = model_pb2.GetModelRequest(name=model)
                    polling.check_not_failed(
                        _messages.model(
                            self._call(_methods.GET_MODEL, request, options, may_retry=False)
                        )
                    )
            except UltrasketchError as error:
                polling.on_error(error)
            time.sleep(polling.next_delay())

    def _call(
        self,
        method: Method[Request, Response],
        request: Request,
        options: CallOptions,
        *,
        may_retry: bool = True,
    ) -> Response:
        call = self._channel.unary_unary(
            method.path, method.request.SerializeToString, method.response.FromString
        )
        state = CallState(self._settings, options, may_retry=may_retry)
        while True:
            try:
                response: Response = call(
                    request, timeout=state.seconds_left(), metadata=state.metadata()
                )
            except grpc.RpcError as error:
                time.sleep(state.retry_delay(error))
            else:
                state.succeeded()
                return response
