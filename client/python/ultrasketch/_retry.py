"""Whether a failed call is tried again, and when: no clock and no waiting here."""

import random
import threading

import grpc

from ._errors import UltrasketchError
from ._types import RetryPolicy

_EARNED_BY_SUCCESS = 0.1
# A delay that the server asks for is drawn out by up to this part of it, so that those who were
# refused together do not come back together.
_PUSHBACK_JITTER = 0.5


class RetryBudget:
    """Of one client. Thread-safe."""

    def __init__(self, capacity: float) -> None:
        self._capacity = capacity
        self._left = capacity
        self._lock = threading.Lock()

    def take(self) -> bool:
        with self._lock:
            if self._left < 1:
                return False
            self._left -= 1
            return True

    def earn(self) -> None:
        with self._lock:
            self._left = min(self._capacity, self._left + _EARNED_BY_SUCCESS)


class Retries:
    """Of one call."""

    def __init__(self, policy: RetryPolicy, budget: RetryBudget) -> None:
        self._policy = policy
        self._budget = budget
        self.attempts = 1

    def delay(self, error: UltrasketchError, seconds_left: float | None) -> float | None:
        """Seconds to wait before the next attempt; None: `error` stands."""
        if self.attempts >= self._policy.max_attempts or not self._may_pass(error):
            return None
        if error.retry_delay is not None and error.retry_delay > self._policy.max_delay:
            return None
        delay = self._delay(error)
        if seconds_left is not None and delay >= seconds_left:
            return None
        if not self._budget.take():
            return None
        self.attempts += 1
        return delay

    def _may_pass(self, error: UltrasketchError) -> bool:
        if not error.may_retry:
            return False
        if error.retry_delay is not None:
            return True
        return error.code is grpc.StatusCode.UNAVAILABLE and error.reason != "FAILED"

    def _delay(self, error: UltrasketchError) -> float:
        if error.retry_delay is not None:
            return error.retry_delay * random.uniform(1.0, 1.0 + _PUSHBACK_JITTER)
        backoff: float = self._policy.initial_backoff * 2.0 ** (self.attempts - 1)
        return min(backoff, self._policy.max_backoff) * random.uniform(0.5, 1.0)
