"""gRPC's status with its google.rpc details as exceptions."""

import copyreg
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

_DETAILS_KEY = "grpc-status-details-bin"
_PUSHBACK_KEY = "grpc-retry-pushback-ms"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    field: str
    description: str


class UltrasketchError(Exception):
    """A call failed. `__cause__` is gRPC's own error."""

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        reason: str = "",
        info: Mapping[str, str] | None = None,
        retry_delay: float | None = None,
        may_retry: bool = True,
        field_violations: Iterable[FieldViolation] = (),
        request_id: str = "",
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = reason  # of ErrorInfo: "QUEUE_FULL", "MODEL_NOT_FOUND", ...; "": none
        self.info = dict(info or {})  # ErrorInfo's metadata
        self.retry_delay = retry_delay  # seconds that the server asks to wait; None: it did not say
        self.may_retry = may_retry  # False: the server asks not to try again
        self.field_violations = tuple(field_violations)  # of BadRequest
        self.request_id = request_id
        self.attempts = 1  # how often the call was tried

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own calls the class with its arguments, of which the code is none.
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]

    def __str__(self) -> str:
        reason = f" [{self.reason}]" if self.reason else ""
        tried = f" (tried {self.attempts} times)" if self.attempts > 1 else ""
        return f"{self.code.name}: {self.message}{reason}{tried}"


class InvalidArgument(UltrasketchError):
    """A field is out of its range, or the prompt beyond the context: see field_violations."""


class NotFound(UltrasketchError):
    """The server hosts no such model."""


class ResourceExhausted(UltrasketchError):
    """Too many requests wait (retry_delay is set), or something is too large."""


class OutOfRange(UltrasketchError):
    """The answer is larger than max_response_bytes."""


class Unavailable(UltrasketchError):
    """The server cannot be reached, or the model is loading, draining or could not be loaded."""


class ModelFailed(Unavailable):
    """What wait_ready says of a model that could not be loaded."""


class DeadlineExceeded(UltrasketchError):
    """`timeout` passed."""


class Cancelled(UltrasketchError):
    """The call was cancelled, here or by the server."""


class DataLoss(UltrasketchError):
    """A damaged model file, or an answer that ended early."""


class Unauthenticated(UltrasketchError):
    """No token or certificate, or one that the server does not know."""


class PermissionDenied(UltrasketchError):
    """Not allowed for this token, or switched off on this server."""


class FailedPrecondition(UltrasketchError):
    """The model cannot do what was asked."""


class Unimplemented(UltrasketchError):
    """The server has no such call, or could not read the message."""


class Internal(UltrasketchError):
    """The server has a bug, or gRPC broke the connection off."""


_CLASSES: dict[grpc.StatusCode, type[UltrasketchError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.OUT_OF_RANGE: OutOfRange,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.DATA_LOSS: DataLoss,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
    grpc.StatusCode.INTERNAL: Internal,
}


def make_error(code: grpc.StatusCode, message: str, **details: Any) -> UltrasketchError:
    return _CLASSES.get(code, UltrasketchError)(code, message, **details)


def from_rpc_error(error: grpc.RpcError, request_id: str) -> UltrasketchError:
    """`error` as grpc and grpc.aio raise it: a finished call, or a record of one."""
    call: Any = error
    details = _details_of(call.trailing_metadata() or ())
    return make_error(call.code(), call.details() or "no message", request_id=request_id, **details)


def _details_of(metadata: Iterable[tuple[str, str | bytes]]) -> dict[str, Any]:
    """Details that do not parse are left out: the code and the message stand without them."""
    found: dict[str, Any] = {}
    for key, value in metadata:
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                found.update(_unpack(status_pb2.Status.FromString(value)))
            except DecodeError:
                continue
    for key, value in metadata:
        if key == _PUSHBACK_KEY:
            # As in gRPC's own retries (proposal A6): anything but a number of milliseconds is a no.
            text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
            if text.isascii() and text.isdigit():
                found["retry_delay"] = max(int(text) / 1000, found.get("retry_delay") or 0.0)
            else:
                found["may_retry"] = False
    return found


def _unpack(status: status_pb2.Status) -> dict[str, Any]:
    found: dict[str, Any] = {}
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    bad_request = error_details_pb2.BadRequest()
    for detail in status.details:
        if detail.Unpack(info):
            found["reason"] = info.reason
            found["info"] = dict(info.metadata)
        elif detail.Unpack(retry):
            found["retry_delay"] = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
        elif detail.Unpack(bad_request):
            found["field_violations"] = tuple(
                FieldViolation(violation.field, violation.description)
                for violation in bad_request.field_violations
            )
    return found
