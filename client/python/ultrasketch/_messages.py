"""Between the package's types and the messages of proto/ultrasketch/v1."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from ._errors import make_error
from ._types import (
    CallOptions,
    ChatMessage,
    Completion,
    Evaluation,
    FinishReason,
    GenerateDelta,
    GenerateOptions,
    GenerateResponse,
    Memory,
    Model,
    ModelState,
    Score,
    ScoreOptions,
    SketchOverhead,
    Timing,
    TokenLogprob,
    TokenLogprobs,
    Tokens,
    Usage,
)
from .v1 import generation_pb2, model_pb2

Prompt = str | Sequence[int]

_CALL_OPTIONS = frozenset(CallOptions.__annotations__)

_AnyMessage = TypeVar("_AnyMessage", bound=Message)
_AnyInput = TypeVar(
    "_AnyInput",
    generation_pb2.GenerateRequest,
    generation_pb2.ScoreRequest,
    generation_pb2.TokenizeRequest,
)


def generate_request(
    prompt: Prompt | None,
    messages: Sequence[ChatMessage] | None,
    add_generation_prompt: bool | None,
    options: GenerateOptions,
) -> generation_pb2.GenerateRequest:
    request = _with_options(_any_size(generation_pb2.GenerateRequest()), options)
    return _with_input(request, prompt, messages, add_generation_prompt)


def score_request(
    text: Prompt | None,
    messages: Sequence[ChatMessage] | None,
    add_generation_prompt: bool | None,
    options: ScoreOptions,
) -> generation_pb2.ScoreRequest:
    request = _with_options(_any_size(generation_pb2.ScoreRequest()), options)
    return _with_input(request, text, messages, add_generation_prompt)


def tokenize_request(
    text: str | None,
    messages: Sequence[ChatMessage] | None,
    add_generation_prompt: bool | None,
    options: CallOptions,
) -> generation_pb2.TokenizeRequest:
    request = _with_options(_any_size(generation_pb2.TokenizeRequest()), options)
    return _with_input(request, text, messages, add_generation_prompt)


def detokenize_request(
    token_ids: Iterable[int], options: CallOptions
) -> generation_pb2.DetokenizeRequest:
    request = _with_options(_any_size(generation_pb2.DetokenizeRequest()), options)
    _set(request, "token_ids", list(token_ids))
    return request


def _any_size(request: _AnyMessage) -> _AnyMessage:
    """Tells the server that the channel takes answers of any size."""
    _set(request, "max_response_bytes", -1)
    return request


def _with_options(request: _AnyMessage, options: Mapping[str, Any]) -> _AnyMessage:
    for name, value in options.items():
        if name in _CALL_OPTIONS or value is None:
            continue
        if name not in request.DESCRIPTOR.fields_by_name:
            raise TypeError(f"unknown option: {name}")
        _set(request, name, value)
    return request


def _set(request: Message, name: str, value: Any) -> None:
    """Names the field in what protobuf says about a value."""
    try:
        if isinstance(value, Mapping):
            getattr(request, name).update(value)
        elif isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
            getattr(request, name).extend(value)
        elif isinstance(value, str) and _is_repeated(request, name):
            raise TypeError("expected a list of strings, found one")
        else:
            setattr(request, name, value)
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _is_repeated(request: Message, name: str) -> bool:
    return hasattr(getattr(request, name), "extend")


def _with_input(
    request: _AnyInput,
    prompt: Prompt | None,
    messages: Sequence[ChatMessage] | None,
    add_generation_prompt: bool | None,
) -> _AnyInput:
    if (prompt is None) == (messages is None):
        raise TypeError("expected either a text (or token ids) or messages")
    if messages is not None:
        for index, message in enumerate(messages):
            _check_message(f"messages[{index}]", message)
            request.messages.messages.add(role=message["role"], content=message["content"])
        if add_generation_prompt is not None:
            request.messages.add_generation_prompt = add_generation_prompt
        request.messages.SetInParent()
    elif isinstance(prompt, str):
        request.text = prompt
    elif isinstance(request, generation_pb2.TokenizeRequest):
        raise TypeError(f"text: expected a str, found {type(prompt).__name__}")
    else:
        _set(request.token_ids, "ids", prompt)
        request.token_ids.SetInParent()
    if add_generation_prompt is not None and messages is None:
        raise TypeError("add_generation_prompt: only messages have one")
    return request


def _check_message(place: str, message: ChatMessage) -> None:
    """As the command checks those of a file."""
    if not isinstance(message, Mapping):
        raise TypeError(
            f"{place}: expected a mapping with role and content, found {type(message).__name__}"
        )
    for key, value in message.items():
        if key not in ("role", "content"):
            raise ValueError(f"{place}: expected role and content alone, found {key!r}")
        if not isinstance(value, str):
            raise TypeError(f"{place}: {key}: expected a str, found {type(value).__name__}")
    for key in ("role", "content"):
        if key not in message:
            raise ValueError(f"{place} has no {key}")


def _duration(message: Duration) -> float:
    return message.seconds + message.nanos / 1e9


def _usage(message: generation_pb2.Usage) -> Usage:
    return Usage(
        prompt_tokens=message.prompt_tokens,
        completion_tokens=message.completion_tokens,
        total_tokens=message.total_tokens,
        cached_prompt_tokens=message.cached_prompt_tokens,
    )


def _timing(message: generation_pb2.Timing) -> Timing:
    return Timing(
        queue=_duration(message.queue),
        prefill=_duration(message.prefill),
        decode=_duration(message.decode),
        steps=message.steps,
        mean_batch_size=message.mean_batch_size,
    )


def _token_logprob(message: generation_pb2.TokenLogprob) -> TokenLogprob:
    return TokenLogprob(message.token_id, message.logprob, message.text, message.bytes)


def _logprobs(messages: Iterable[generation_pb2.TokenLogprobs]) -> tuple[TokenLogprobs, ...]:
    return tuple(
        TokenLogprobs(_token_logprob(message.token), tuple(map(_token_logprob, message.top)))
        for message in messages
    )


_FINISH_REASONS = {
    number: FinishReason(name.removeprefix("FINISH_REASON_").lower())
    for name, number in generation_pb2.FinishReason.items()
}
_MODEL_STATES = {
    number: ModelState(name.removeprefix("MODEL_STATE_").lower())
    for name, number in model_pb2.ModelState.items()
}


def generate_response(message: generation_pb2.GenerateResponse) -> GenerateResponse:
    return GenerateResponse(
        model=message.model,
        completions=tuple(
            Completion(
                index=completion.index,
                text=completion.text,
                token_ids=tuple(completion.token_ids),
                finish_reason=_finish_reason(completion.finish_reason),
                stop_string=completion.stop_string,
                logprobs=_logprobs(completion.logprobs),
            )
            for completion in message.completions
        ),
        usage=_usage(message.usage),
        seed=message.seed,
        timing=_timing(message.timing),
        prompt_logprobs=_logprobs(message.prompt_logprobs),
    )


def _finish_reason(number: int) -> FinishReason:
    # A newer server may have reasons that this package does not know.
    return _FINISH_REASONS.get(number, FinishReason.UNSPECIFIED)


class StreamedResponse:
    """A stream's messages as deltas, and the whole of them."""

    def __init__(self) -> None:
        self._model = ""
        self._texts: dict[int, list[str]] = {}
        self._token_ids: dict[int, list[int]] = {}
        self._logprobs: dict[int, list[TokenLogprobs]] = {}
        self._finals: dict[int, generation_pb2.GenerateFinal] = {}

    def add(self, message: generation_pb2.GenerateStreamResponse) -> GenerateDelta | None:
        """None for what is no delta."""
        if message.HasField("model"):
            self._model = message.model
        if message.HasField("final"):
            self._finals[message.final.index] = message.final
            self._texts.setdefault(message.final.index, [])
        if not message.HasField("delta"):
            return None
        delta = GenerateDelta(
            index=message.delta.index,
            text=message.delta.text,
            token_ids=tuple(message.delta.token_ids),
            logprobs=_logprobs(message.delta.logprobs),
        )
        self._texts.setdefault(delta.index, []).append(delta.text)
        self._token_ids.setdefault(delta.index, []).extend(delta.token_ids)
        self._logprobs.setdefault(delta.index, []).extend(delta.logprobs)
        return delta

    def is_complete(self) -> bool:
        return bool(self._finals) and self._finals.keys() == self._texts.keys()

    def response(self) -> GenerateResponse:
        """Only of a complete one."""
        finals = [self._finals[index] for index in sorted(self._finals)]
        completion_tokens = sum(final.usage.completion_tokens for final in finals)
        prompt_tokens = finals[0].usage.prompt_tokens
        return GenerateResponse(
            model=self._model,
            completions=tuple(self._completion(final) for final in finals),
            # Each final message counts the prompt, and its own completion's tokens.
            usage=Usage(
                prompt_tokens=prompt_tokens,
                completion_tokens=completion_tokens,
                total_tokens=prompt_tokens + completion_tokens,
                cached_prompt_tokens=finals[0].usage.cached_prompt_tokens,
            ),
            seed=finals[0].seed,
            timing=max((_timing(final.timing) for final in finals), key=lambda t: t.decode),
            prompt_logprobs=next(
                (_logprobs(final.prompt_logprobs) for final in finals if final.prompt_logprobs), ()
            ),
        )

    def _completion(self, final: generation_pb2.GenerateFinal) -> Completion:
        return Completion(
            index=final.index,
            text="".join(self._texts[final.index]),
            token_ids=tuple(self._token_ids.get(final.index, ())),
            finish_reason=_finish_reason(final.finish_reason),
            stop_string=final.stop_string,
            logprobs=tuple(self._logprobs.get(final.index, ())),
        )


def check_complete(streamed: StreamedResponse, request_id: str) -> None:
    if not streamed.is_complete():
        raise make_error(
            grpc.StatusCode.DATA_LOSS,
            "the server ended the stream without its final messages",
            request_id=request_id,
        )


def score(message: generation_pb2.ScoreResponse) -> Score:
    return Score(
        model=message.model,
        token_ids=tuple(message.token_ids),
        logprobs=_logprobs(message.logprobs),
        sum_logprob=message.sum_logprob,
        perplexity=message.perplexity,
    )


def tokens(message: generation_pb2.TokenizeResponse) -> Tokens:
    return Tokens(tuple(message.token_ids), tuple(message.tokens))


def model(message: model_pb2.Model) -> Model:
    return Model(
        name=message.name,
        state=_MODEL_STATES.get(message.state, ModelState.UNSPECIFIED),
        error=message.error,
        architecture=message.architecture,
        codec=message.codec,
        device=message.device,
        num_parameters=message.num_parameters,
        bits_per_weight_linear=message.bits_per_weight_linear,
        bits_per_weight_file=message.bits_per_weight_file,
        max_context_tokens=message.max_context_tokens,
        vocab_size=message.vocab_size,
        memory=Memory(
            weights=message.memory.weights_bytes,
            embedding=message.memory.embedding_bytes,
            kv_cache=message.memory.kv_cache_bytes,
            workspace=message.memory.workspace_bytes,
        ),
        weights_checksum=message.weights_checksum,
        chat=message.chat,
        sketch_overhead=(
            sketch_overhead(message.sketch_overhead)
            if message.HasField("sketch_overhead")
            else None
        ),
        evaluation=(
            Evaluation(
                perplexity=message.evaluation.perplexity,
                dense_perplexity=message.evaluation.dense_perplexity,
                num_tokens=message.evaluation.num_tokens,
                context_tokens=message.evaluation.context_tokens,
            )
            if message.HasField("evaluation")
            else None
        ),
        kv_cache_type=message.kv_cache_type,
    )


def sketch_overhead(message: model_pb2.SketchOverhead) -> SketchOverhead:
    return SketchOverhead(message.prefill_ratio, message.decode_ratio)
