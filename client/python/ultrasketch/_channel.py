"""Where a client's calls go and what goes with them: the same for both clients."""

import json
import os
import time
import uuid
from importlib.metadata import version

import grpc

from ._errors import from_rpc_error
from ._retry import Retries, RetryBudget
from ._types import CallOptions, ClientOptions, RetryPolicy, Tls

# The server closes the connections of those who ping more often than every 5 seconds.
_KEEPALIVE_TIME_MS = 30_000
_KEEPALIVE_TIMEOUT_MS = 10_000
_MAX_RECONNECT_BACKOFF_MS = 10_000  # gRPC's own is 2 minutes

_KNOWN = frozenset(ClientOptions.__annotations__)


def is_local(target: str) -> bool:
    """Whether `target` can only be this machine."""
    address = target.removeprefix("dns:///").removeprefix("ipv4:").removeprefix("ipv6:")
    return target.startswith(("unix:", "unix-abstract:")) or all(
        part.startswith(("localhost:", "127.", "[::1]")) or part == "localhost"
        for part in address.split(",")
    )


class Token:
    """The bearer token; of a file, as the file is at the time of the call. Thread-safe."""

    def __init__(self, text: str | None, path: str | None) -> None:
        if text is not None and path is not None:
            raise ValueError("expected one of token and token_file, found both")
        self._path = path
        # Replaced as a whole, so that threads see a token and the file state it belongs to.
        self._read: tuple[tuple[int, int, int], str] | None = None
        self._text = text

    def get(self) -> str | None:
        if self._path is None:
            return self._text
        state = os.stat(self._path)
        key = (state.st_mtime_ns, state.st_size, state.st_ino)
        read = self._read
        if read is None or read[0] != key:
            with open(self._path, encoding="ascii") as file:
                text = file.read().strip()
            if not text:
                raise ValueError(f"token_file {self._path}: expected a token, found an empty file")
            self._read = read = (key, text)
        return read[1]


class Settings:
    """What a client was made with, checked."""

    def __init__(self, target: str, options: ClientOptions) -> None:
        if not target:
            raise ValueError("target is empty: expected HOST:PORT or another gRPC target")
        if unknown := options.keys() - _KNOWN:
            raise TypeError(f"unknown options: {', '.join(sorted(unknown))}")
        self.target = target
        tls = options.get("tls")
        self.tls = Tls() if tls is True else tls or None
        self.token = Token(options.get("token"), options.get("token_file"))
        if (
            (options.get("token") is not None or options.get("token_file") is not None)
            and self.tls is None
            and not is_local(target)
            and not options.get("token_without_tls", False)
        ):
            raise ValueError(
                f"the token would go to {target} without encryption: pass tls, or "
                "token_without_tls=True where the way there is safe"
            )
        self.client_id = options.get("client_id")
        self.timeout = options.get("timeout")
        self.retry = options.get("retry", RetryPolicy())
        self.budget = RetryBudget(self.retry.budget)
        self._round_robin = options.get("round_robin", True)
        self._check_health = options.get("check_health", False)
        self._channel_options = options.get("channel_options", ())

    def credentials(self) -> grpc.ChannelCredentials | None:
        if self.tls is None:
            return None
        return grpc.ssl_channel_credentials(
            root_certificates=_read(self.tls.ca),
            private_key=_read(self.tls.key),
            certificate_chain=_read(self.tls.certificate),
        )

    def channel_options(self) -> list[tuple[str, str | int]]:
        options: dict[str, str | int] = {
            "grpc.max_receive_message_length": -1,
            "grpc.max_send_message_length": -1,
            "grpc.keepalive_time_ms": _KEEPALIVE_TIME_MS,
            "grpc.keepalive_timeout_ms": _KEEPALIVE_TIMEOUT_MS,
            "grpc.keepalive_permit_without_calls": 1,
            # A stream may say nothing for long while its request waits.
            "grpc.http2.max_pings_without_data": 0,
            "grpc.max_reconnect_backoff_ms": _MAX_RECONNECT_BACKOFF_MS,
            "grpc.primary_user_agent": f"ultrasketch-python/{version('ultrasketch')}",
            "grpc.service_config": json.dumps(self._service_config()),
        }
        if is_local(self.target):
            # A proxy named in the environment is never meant for the machine itself.
            options["grpc.enable_http_proxy"] = 0
        if self.tls is not None and self.tls.server_name is not None:
            options["grpc.ssl_target_name_override"] = self.tls.server_name
        options.update(dict(self._channel_options))
        return list(options.items())

    def _service_config(self) -> dict[str, object]:
        policy = "round_robin" if self._round_robin else "pick_first"
        config: dict[str, object] = {"loadBalancingConfig": [{policy: {}}]}
        if self._check_health:
            config["healthCheckConfig"] = {"serviceName": ""}
        return config


class CallState:
    """One call over its attempts: its deadline, id and metadata."""

    def __init__(self, settings: Settings, options: CallOptions, *, may_retry: bool = True) -> None:
        self._settings = settings
        timeout = options.get("timeout", settings.timeout)
        if timeout is not None and timeout < 0:
            raise ValueError(f"timeout: expected seconds of at least 0, found {timeout}")
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self.request_id = options.get("request_id") or uuid.uuid4().hex
        self._extra = tuple(options.get("metadata", ()))
        policy = settings.retry if may_retry else RetryPolicy(max_attempts=1)
        self._retries = Retries(policy, settings.budget)

    def seconds_left(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def metadata(self) -> tuple[tuple[str, str], ...]:
        metadata = [("x-request-id", self.request_id)]
        if self._settings.client_id is not None:
            metadata.append(("client-id", self._settings.client_id))
        if (token := self._settings.token.get()) is not None:
            metadata.append(("authorization", f"Bearer {token}"))
        return (*metadata, *self._extra)

    def retry_delay(self, error: grpc.RpcError, *, may_retry: bool = True) -> float:
        """Seconds until the call that failed so may be tried again, or raises what `error` says."""
        failure = from_rpc_error(error, self.request_id)
        delay = self._retries.delay(failure, self.seconds_left()) if may_retry else None
        if delay is None:
            failure.attempts = self._retries.attempts
            raise failure from error
        return delay

    def succeeded(self) -> None:
        self._settings.budget.earn()


def _read(path: str | None) -> bytes | None:
    if path is None:
        return None
    with open(path, "rb") as file:
        return file.read()
