"""Waiting for a server or a model to serve: what is asked when, without asking."""

import time

import grpc

from ._errors import ModelFailed, UltrasketchError, make_error
from ._types import Model, ModelState

_FIRST_DELAY = 0.05
_MAX_DELAY = 1.0
_CALL_TIMEOUT = 5.0


class Polling:
    def __init__(self, model: str, timeout: float) -> None:
        if not timeout >= 0:
            raise ValueError(f"timeout: expected seconds of at least 0, found {timeout}")
        self._what = f"the model {model}" if model else "the server"
        self._deadline = time.monotonic() + timeout
        self._timeout = timeout
        self._delay = _FIRST_DELAY
        self._last = "has not answered"

    def call_timeout(self) -> float:
        return max(0.001, min(_CALL_TIMEOUT, self._deadline - time.monotonic()))

    def is_ready(self, health: str) -> bool:
        self._last = f"is {health}"
        return health == "SERVING"

    def check_not_failed(self, model: Model) -> None:
        if model.state is ModelState.FAILED:
            raise ModelFailed(
                grpc.StatusCode.UNAVAILABLE,
                f"{self._what} could not be loaded: {model.error}",
                reason="FAILED",
            )

    def on_error(self, error: UltrasketchError) -> None:
        """Raises what waiting does not change."""
        if isinstance(error, ModelFailed) or error.code not in _MAY_PASS:
            raise error
        # What was said before tells more than that the last question was cut short.
        if error.code is not grpc.StatusCode.DEADLINE_EXCEEDED:
            self._last = f"answered {error}"

    def next_delay(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise make_error(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                f"{self._what} was not ready after {self._timeout:g} s: it {self._last}",
            )
        delay = min(self._delay, left)
        self._delay = min(self._delay * 2, _MAX_DELAY)
        return delay


# A model that is not there yet may be on its way; anything may be while a server starts.
_MAY_PASS = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)
