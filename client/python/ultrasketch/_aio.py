"""The client for asyncio."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import grpc
import grpc.aio

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


def _is_cancelling() -> bool:
    """Whether somebody cancels this task."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class AsyncGenerateStream(Stream):
    """Deltas as they arrive:

        async with client.stream("It was a dark and stormy night", max_tokens=64) as stream:
            async for delta in stream:
                print(delta.text, end="", flush=True)
        print(stream.response.usage)

    Leaving the loop or the `async with` before the end, and cancelling the task, cancel the call,
    and the server frees what it held. One task reads; `cancel` may be called from any.
    """

    def __init__(self, start: Callable[[], Any], state: CallState) -> None:
        super().__init__(start, state)
        self._cancelled = asyncio.Event()

    async def read(self) -> GenerateResponse:
        """Reads what is left and returns the whole."""
        async for _ in self:
            pass
        return self.response

    def cancel(self) -> None:
        """A reader in another task gets Cancelled. Of a finished stream: nothing happens."""
        self._cancelled.set()
        self._call.cancel()

    def __aiter__(self) -> AsyncIterator[GenerateDelta]:
        return _Deltas(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        if not self._is_finished:
            self.cancel()

    async def _next_delta(self) -> GenerateDelta | None:
        while (message := await self._next_message()) is not None:
            if (delta := self._streamed.add(message)) is not None:
                return delta
        return None

    async def _next_message(self) -> generation_pb2.GenerateStreamResponse | None:
        while not self._is_finished:
            try:
                message = await self._call.read()
            except grpc.RpcError as error:
                await self._wait_to_retry(error)
            except asyncio.CancelledError:
                # What grpc.aio raises for a call that was cancelled here is no cancelled task.
                self._is_finished = True
                if _is_cancelling() or not self._cancelled.is_set():
                    raise
                raise self._cancelled_error() from None
            else:
                if message is grpc.aio.EOF:
                    self._on_end()
                    return None
                self._has_begun = True
                return message  # type: ignore[no-any-return]  # grpc.aio does not know its type
        return None

    async def _wait_to_retry(self, error: grpc.RpcError) -> None:
        """Starts the call again after a while, or raises."""
        delay = self._retry_delay(error)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._cancelled.wait(), delay)
        if self._cancelled.is_set():
            raise self._cancelled_error()
        self._call = self._start()


class _Deltas(AsyncIterator[GenerateDelta]):
    """Of one loop over a stream: leaving the loop drops it, which cancels the call at once. (An
    asynchronous generator would be closed only later, by a task of its own.)"""

    def __init__(self, stream: AsyncGenerateStream) -> None:
        self._stream = stream

    async def __anext__(self) -> GenerateDelta:
        if (delta := await self._stream._next_delta()) is None:
            raise StopAsyncIteration
        return delta

    def __del__(self) -> None:
        self._stream._leave()


class AsyncClient:
    """Calls of one server, or of replicas of it, for asyncio.

        async with AsyncClient("localhost:8001") as client:
            response = await client.generate("It was a dark and stormy night", max_tokens=64)

    As Client, but for one event loop: make it where the loop runs.
    """

    def __init__(self, target: str, **options: Unpack[ClientOptions]) -> None:
        self._settings = Settings(target, options)
        credentials = self._settings.credentials()
        channel_options = self._settings.channel_options()
        self._channel = (
            grpc.aio.insecure_channel(target, channel_options)
            if credentials is None
            else grpc.aio.secure_channel(target, credentials, channel_options)
        )

    async def close(self) -> None:
        """Cancels the calls in flight."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def generate(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        messages: Sequence[ChatMessage] | None = None,
        add_generation_prompt: bool | None = None,
        **options: Unpack[GenerateOptions],
    ) -> GenerateResponse:
        """The whole completion at once, of a text, of token ids or of a conversation."""
        request = _messages.generate_request(prompt, messages, add_generation_prompt, options)
        return _messages.generate_response(await self._call(_methods.GENERATE, request, options))

    def stream(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        messages: Sequence[ChatMessage] | None = None,
        add_generation_prompt: bool | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncGenerateStream:
        """The same as it arrives. Errors are raised by the stream's iterator."""
        request = _messages.generate_request(prompt, messages, add_generation_prompt, options)
        method = _methods.GENERATE_STREAM
        call = self._channel.unary_stream(
            method.path, method.request.SerializeToString, method.response.FromString
        )
        state = CallState(self._settings, options)
        return AsyncGenerateStream(
            lambda: call(request, timeout=state.seconds_left(), metadata=state.metadata()), state
        )

    async def score(
        self,
        text: str | Sequence[int] | None = None,
        *,
        messages: Sequence[ChatMessage] | None = None,
        add_generation_prompt: bool | None = None,
        **options: Unpack[ScoreOptions],
    ) -> Score:
        """Log-probabilities of a text under the model."""
        request = _messages.score_request(text, messages, add_generation_prompt, options)
        return _messages.score(await self._call(_methods.SCORE, request, options))

    async def tokenize(
        self,
        text: str | None = None,
        *,
        messages: Sequence[ChatMessage] | None = None,
        add_generation_prompt: bool | None = None,
        **options: Unpack[ModelOptions],
    ) -> Tokens:
        request = _messages.tokenize_request(text, messages, add_generation_prompt, options)
        return _messages.tokens(await self._call(_methods.TOKENIZE, request, options))

    async def detokenize(
        self, token_ids: Iterable[int], **options: Unpack[DetokenizeOptions]
    ) -> str:
        request = _messages.detokenize_request(token_ids, options)
        return (await self._call(_methods.DETOKENIZE, request, options)).text

    async def list_models(self, **options: Unpack[CallOptions]) -> tuple[Model, ...]:
        """By name."""
        response = await self._call(_methods.LIST_MODELS, model_pb2.ListModelsRequest(), options)
        return tuple(map(_messages.model, response.models))

    async def get_model(self, name: str, **options: Unpack[CallOptions]) -> Model:
        request = model_pb2.GetModelRequest(name=name)
        return _messages.model(await self._call(_methods.GET_MODEL, request, options))

    async def load_model(self, name: str, **options: Unpack[CallOptions]) -> Model:
        """Returns when the model serves, or raises why it does not. Loading goes on when the caller
        leaves."""
        request = model_pb2.LoadModelRequest(name=name)
        return _messages.model(
            await self._call(_methods.LOAD_MODEL, request, options, may_retry=False)
        )

    async def unload_model(self, name: str, **options: Unpack[CallOptions]) -> None:
        """Returns when requests in flight have finished and the memory is free."""
        request = model_pb2.UnloadModelRequest(name=name)
        await self._call(_methods.UNLOAD_MODEL, request, options, may_retry=False)

    async def measure_overhead(self, name: str, **options: Unpack[CallOptions]) -> SketchOverhead:
        """Measures anew what a READY model's compression does to the time of its steps: a few
        seconds at most. FailedPrecondition for a model that is not compressed."""
        request = model_pb2.MeasureOverheadRequest(name=name)
        return _messages.sketch_overhead(
            await self._call(_methods.MEASURE_OVERHEAD, request, options)
        )

    async def health(self, service: str = "", **options: Unpack[CallOptions]) -> str:
        """What the server says of itself (""), of a model or of a service: "SERVING",
        "NOT_SERVING". NotFound for a name that it does not know."""
        request = _methods.health_request(service)
        return _methods.health_name(await self._call(_methods.HEALTH_CHECK, request, options))

    async def wait_ready(self, model: str = "", *, timeout: float = 60.0) -> None:
        """Returns when the server, or one model, serves. DeadlineExceeded says what it waited for;
        ModelFailed, why the model could not be loaded."""
        polling = Polling(model, timeout)
        while True:
            try:
                options: CallOptions = {"timeout": polling.call_timeout()}
                health = await self._call(
                    _methods.HEALTH_CHECK, _methods.health_request(model), options, may_retry=False
                )
                if polling.is_ready(_methods.health_name(health)):
                    return
                if model:
                    request = model_pb2.GetModelRequest(name=model)
                    polling.check_not_failed(
                        _messages.model(
                            await self._call(_methods.GET_MODEL, request, options, may_retry=False)
                        )
                    )
            except UltrasketchError as error:
                polling.on_error(error)
            await asyncio.sleep(polling.next_delay())

    async def _call(
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
                response: Response = await call(
                    request, timeout=state.seconds_left(), metadata=state.metadata()
                )
            except grpc.RpcError as error:
                await asyncio.sleep(state.retry_delay(error))
            else:
                state.succeeded()
                return response
