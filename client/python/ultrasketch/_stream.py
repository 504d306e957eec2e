"""A streamed call, but for how it is waited for: what both clients' streams share."""

from collections.abc import Callable
from typing import Any

import grpc

from . import _messages
from ._channel import CallState
from ._errors import UltrasketchError, make_error
from ._types import GenerateResponse


class Stream:
    def __init__(self, start: Callable[[], Any], state: CallState) -> None:
        self._start = start
        self._state = state
        self._streamed = _messages.StreamedResponse()
        self._has_begun = False
        self._is_finished = False
        self._call = start()

    @property
    def request_id(self) -> str:
        return self._state.request_id

    @property
    def response(self) -> GenerateResponse:
        """The whole, once every delta has been read; ValueError before."""
        if not self._is_finished or not self._streamed.is_complete():
            raise ValueError("the stream has not been read to its end")
        return self._streamed.response()

    def _on_end(self) -> None:
        """The server has sent all. Raises when that is not the whole."""
        self._is_finished = True
        self._state.succeeded()
        _messages.check_complete(self._streamed, self.request_id)

    def _retry_delay(self, error: grpc.RpcError) -> float:
        """Seconds until the call may be started again, or raises why it is not."""
        try:
            return self._state.retry_delay(error, may_retry=not self._has_begun)
        except UltrasketchError:
            self._is_finished = True
            raise

    def _cancelled_error(self) -> UltrasketchError:
        self._is_finished = True
        return make_error(
            grpc.StatusCode.CANCELLED, "cancelled by the caller", request_id=self.request_id
        )
