"""What calls take and return: the messages of proto/ultrasketch/v1 as plain Python. Ranges and
defaults are described there."""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict


class ChatMessage(TypedDict):
    role: str  # usually "system", "user" or "assistant": the model's template decides
    content: str


class CallOptions(TypedDict, total=False):
    """Of every call."""

    # Seconds for the whole call, retries included; DeadlineExceeded after them, and the server
    # stops working on it. None or infinity: no limit. Unset: the client's.
    timeout: float | None
    # Sent as `x-request-id`; unset: a random one. Errors and streams carry it.
    request_id: str
    # Sent beside the client's own; bytes for keys that end in -bin.
    metadata: Sequence[tuple[str, str | bytes]]


class ModelOptions(CallOptions, total=False):
    model: str  # unset: the server's only model
    max_response_bytes: int  # OutOfRange for a larger answer; unset, or -1: any size
    add_special_tokens: bool
    split_special_tokens: bool


class GenerateOptions(ModelOptions, total=False):
    """Unset: the value of the model's generation_config.json, or the neutral one."""

    max_tokens: int
    min_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    stop: Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    include_stop_in_output: bool
    skip_special_tokens: bool
    seed: int
    n: int
    logprobs: int
    prompt_logprobs: int
    logit_bias: Mapping[int, float]
    priority: int


class ScoreOptions(ModelOptions, total=False):
    top_logprobs: int


class DetokenizeOptions(CallOptions, total=False):
    model: str
    max_response_bytes: int  # as in ModelOptions
    skip_special_tokens: bool


class ModelState(enum.StrEnum):
    UNSPECIFIED = "unspecified"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class FinishReason(enum.StrEnum):
    UNSPECIFIED = "unspecified"
    STOP = "stop"  # an end token, a stop token or a stop string
    LENGTH = "length"  # max_tokens or the model's context
    CANCELLED = "cancelled"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    token_id: int
    logprob: float  # natural logarithm
    text: str  # what it adds to the text
    bytes: bytes  # the same, also where it is part of a character


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    token: TokenLogprob
    top: tuple[TokenLogprob, ...] = ()  # most likely first


@dataclass(frozen=True, slots=True)
class GenerateDelta:
    """New text and tokens of one completion. Text is whole characters and may lag behind tokens."""

    index: int  # which completion
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop_string: str = ""  # the stop string that ended it
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int = 0
    completion_tokens: int = 0  # over all completions
    total_tokens: int = 0
    cached_prompt_tokens: int = 0  # of the prompt, found in the prefix cache


@dataclass(frozen=True, slots=True)
class Timing:
    """As the server measured it, in seconds; of a stream, of the completion that took longest."""

    queue: float = 0.0  # arrival to first scheduling
    prefill: float = 0.0  # first scheduling to first token
    decode: float = 0.0  # first token to last
    steps: int = 0  # engine steps that the request took part in
    mean_batch_size: float = 0.0  # sequences in those steps, on average


@dataclass(frozen=True, slots=True)
class GenerateResponse:
    model: str
    completions: tuple[Completion, ...]  # by index
    usage: Usage
    seed: int  # the effective one
    timing: Timing
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()

    @property
    def text(self) -> str:
        """Of the first completion."""
        return self.completions[0].text


@dataclass(frozen=True, slots=True)
class Score:
    model: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]  # of token_ids[1:]
    sum_logprob: float
    perplexity: float


@dataclass(frozen=True, slots=True)
class Tokens:
    ids: tuple[int, ...]
    spellings: tuple[str, ...]  # as in the vocabulary, parallel to ids


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes held on the model's device."""

    weights: int = 0
    embedding: int = 0
    kv_cache: int = 0
    workspace: int = 0


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a compressed model was worth when it was made, on a text of its maker's choice."""

    perplexity: float
    dense_perplexity: float  # of the model it was made from, on the same tokens
    num_tokens: int  # predicted
    context_tokens: int  # of a window


@dataclass(frozen=True, slots=True)
class SketchOverhead:
    """The time of a step over that of the same step with uncompressed layers: below 1 the
    compressed model is faster."""

    prefill_ratio: float  # a prompt of up to 256 tokens
    decode_ratio: float  # the next token of one sequence


@dataclass(frozen=True, slots=True)
class Model:
    name: str
    state: ModelState
    error: str = ""  # why it failed; of a READY model: why replacing it failed
    architecture: str = ""
    codec: str = ""
    device: str = ""
    num_parameters: int = 0
    bits_per_weight_linear: float = 0.0
    bits_per_weight_file: float = 0.0
    max_context_tokens: int = 0
    vocab_size: int = 0
    memory: Memory = field(default_factory=Memory)
    weights_checksum: str = ""
    chat: bool = False  # takes `messages`
    sketch_overhead: SketchOverhead | None = None  # None: not measured yet, or not compressed
    evaluation: Evaluation | None = None  # None: whoever made the model recorded none
    kv_cache_type: str = ""  # how keys and values are kept: "fp16", "int8", ...


@dataclass(frozen=True, slots=True)
class Tls:
    """Files in PEM. They are read when the client is made."""

    ca: str | None = None  # whom to trust; None: the system's
    certificate: str | None = None  # this client's, with its key: mutual TLS
    key: str | None = None
    # The name in the server's certificate, where it is not that of the target.
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("tls: expected both or none of certificate and key")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a call is tried again.

    The server's own word counts most: an error with a delay (RetryInfo, grpc-retry-pushback-ms) is
    tried again after it, never sooner. Without one only what may be over in a moment is:
    UNAVAILABLE, but for a model that has FAILED. A stream that has begun is never tried again, nor
    are LoadModel and UnloadModel.
    """

    max_attempts: int = 5  # 1: never again
    initial_backoff: float = 0.2  # seconds; doubled each time, drawn between half of it and all
    max_backoff: float = 5.0
    max_delay: float = 60.0  # seconds; when the server asks for more, the error is raised
    # Retries that all calls of a client have together; each call that succeeds earns a tenth of
    # one. When servers fail for everyone, clients stop adding to it.
    budget: float = 100.0

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts: expected at least 1, found {self.max_attempts}")
        for name in ("initial_backoff", "max_backoff", "max_delay", "budget"):
            value = getattr(self, name)
            if not value >= 0:
                raise ValueError(f"{name}: expected at least 0, found {value}")


class ClientOptions(TypedDict, total=False):
    """Of Client and AsyncClient."""

    tls: Tls | bool | None  # True: the system's authorities; None or False: no encryption
    token: str | None  # sent as `authorization: Bearer`
    token_file: str | None  # the same, read again whenever the file changes
    # A token goes without encryption only to this machine, unless this says that the way is safe.
    token_without_tls: bool
    client_id: str | None  # whose turn it is: clients with one id share one place in the queue
    timeout: float | None  # of calls that have none of their own
    retry: RetryPolicy
    # Calls go round the addresses that the target resolves to; False: to the first that answers.
    round_robin: bool
    # Leave out replicas that say they are not SERVING (they load, or drain). Models cannot be
    # listed and loaded there then.
    check_health: bool
    channel_options: Sequence[tuple[str, str | int]]  # gRPC's; they win over the client's
