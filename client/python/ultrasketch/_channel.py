"""Where a client's calls go and what goes with them: the same for both clients."""

import json
import os
import socket
import string
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
_LONGEST_TIMEOUT = 100 * 365 * 24 * 3600.0

_KNOWN = frozenset(ClientOptions.__annotations__)


def is_loopback(target: str) -> bool:
    """Whether `target` can only be this machine: an address of 127.0.0.0/8, ::1, the name localhost
    or a Unix socket. The C++ client goes by the same rule, and both by one table of tests."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    for scheme in ("ipv4:", "ipv6:"):
        if target.startswith(scheme):
            # gRPC's only schemes of several addresses.
            return all(map(_is_loopback_address, target.removeprefix(scheme).split(",")))
    # With an authority, a name server that the target names would answer.
    for prefix in ("dns:///", "dns:"):
        if target.startswith(prefix):
            return _is_loopback_address(target.removeprefix(prefix))
    return _is_loopback_address(target)


def _is_loopback_address(address: str) -> bool:
    """Of HOST, HOST:PORT or [HOST]:PORT, which gRPC splits so, too."""
    host = address
    if address.startswith("["):
        host, bracket, rest = address[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            return False
    elif address.count(":") == 1:
        host = address.partition(":")[0]
    if host.lower().removesuffix(".") == "localhost":
        return True
    # A name may begin with 127, too.
    if (ipv4 := _parse_address(socket.AF_INET, host)) is not None:
        return ipv4[0] == 127
    return _parse_address(socket.AF_INET6, host) == b"\0" * 15 + b"\1"


def _parse_address(family: socket.AddressFamily, host: str) -> bytes | None:
    try:
        return socket.inet_pton(family, host)
    except (OSError, ValueError):
        return None


def check_header(name: str, value: str | bytes) -> None:
    """Refuses what gRPC would refuse at every call, without saying which of all it was."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a str, found {type(value).__name__}")
    if not (value.isascii() and value.isprintable()):
        raise ValueError(f"{name}: expected printable ASCII, found {value!r}")


def _check_token(name: str, token: str) -> None:
    # Without the token, which is nobody's business.
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise ValueError(f"{name}: expected a token of printable ASCII without spaces")
    if not token:
        raise ValueError(f"{name}: expected a token, found none")


def _parse_token_file(name: str, text: str) -> str:
    """The first line that is neither empty nor a comment, of which the part after the last colon,
    so that a server's file will do. As the command reads it."""
    for line in text.split("\n"):
        line = line.strip(string.whitespace)
        if line and not line.startswith("#") and (token := line.rpartition(":")[2]):
            _check_token(name, token)
            return token
    raise ValueError(f"{name}: expected a token, found none")


def check_timeout(timeout: float | None) -> float | None:
    """None for no limit, and for one so far away that clocks do not reach it."""
    if timeout is None:
        return None
    if not timeout >= 0:
        raise ValueError(f"timeout: expected seconds of at least 0, found {timeout}")
    return timeout if timeout < _LONGEST_TIMEOUT else None


class Token:
    """The bearer token; of a file, as the file is at the time of the call. Thread-safe."""

    def __init__(self, text: str | None, path: str | None) -> None:
        if text is not None and path is not None:
            raise ValueError("expected one of token and token_file, found both")
        if text is not None:
            _check_token("token", text)
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
            # Latin-1, in which any bytes are text: comments may be in any encoding.
            with open(self._path, encoding="latin-1", newline="") as file:
                token = _parse_token_file(f"token_file {self._path}", file.read())
            self._read = read = (key, token)
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
            and not is_loopback(target)
            and not options.get("token_without_tls", False)
        ):
            raise ValueError(
                f"the token would go to {target} without encryption: pass tls, or "
                "token_without_tls=True where the way there is safe"
            )
        self.client_id = options.get("client_id")
        if self.client_id is not None:
            check_header("client_id", self.client_id)
        self.timeout = check_timeout(options.get("timeout"))
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
        if is_loopback(self.target):
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
        timeout = check_timeout(options.get("timeout", settings.timeout))
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self.request_id = options.get("request_id") or uuid.uuid4().hex
        check_header("request_id", self.request_id)
        self._extra = tuple(options.get("metadata", ()))
        for key, value in self._extra:
            if not key.endswith("-bin"):
                check_header(f"metadata {key!r}", value)
        policy = settings.retry if may_retry else RetryPolicy(max_attempts=1)
        self._retries = Retries(policy, settings.budget)

    def seconds_left(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        metadata: list[tuple[str, str | bytes]] = [("x-request-id", self.request_id)]
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
