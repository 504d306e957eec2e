"""Who a client says it is: metadata, tokens, TLS."""

import asyncio
import os
import pathlib
import subprocess

import grpc
import pytest

import ultrasketch
from conftest import MODELS, REPOSITORY, FakeServer, LiveServer
from ultrasketch import AsyncClient, Client, Tls
from ultrasketch._channel import is_loopback


def test_calls_carry_ids_and_metadata(fake: FakeServer) -> None:
    with Client(fake.target, client_id="nightly") as client:
        client.generate("a")
        client.generate("a", request_id="mine", metadata=[("traceparent", "00-1-2-01")])
        stream = client.stream("a")
        stream.read()
    assert [call["client-id"] for call in fake.calls] == ["nightly"] * 3
    assert len(fake.calls[0]["x-request-id"]) == 32
    assert fake.calls[1]["x-request-id"] == "mine"
    assert fake.calls[1]["traceparent"] == "00-1-2-01"
    assert fake.calls[2]["x-request-id"] == stream.request_id
    assert fake.calls[0]["user-agent"].startswith("ultrasketch-python/")


def test_a_token_of_a_file_is_read_again_when_it_changes(
    fake: FakeServer, tmp_path: pathlib.Path
) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    with Client(fake.target, token_file=str(file)) as client:
        client.generate("a")
        replacement = tmp_path / "new"
        replacement.write_text("second\n")
        os.replace(replacement, file)
        client.generate("a")
        file.write_text("")
        with pytest.raises(ValueError, match=f"token_file {file}: expected a token, found none"):
            client.generate("a")
    assert [call["authorization"] for call in fake.calls] == [
        "Bearer first",
        "Bearer second",
    ]


def test_a_token_file_may_be_the_servers(fake: FakeServer, tmp_path: pathlib.Path) -> None:
    file = tmp_path / "tokens"
    file.write_bytes("# café\r\n\n  ci:user:first \r\noperator:admin:second\n".encode("latin-1"))
    with Client(fake.target, token_file=str(file)) as client:
        client.generate("a")
        file.write_text("# none yet\n")
        with pytest.raises(ValueError, match="expected a token, found none"):
            client.generate("a")
        file.write_text("ci:user:sécret\n")
        with pytest.raises(ValueError, match="printable ASCII without spaces$"):
            client.generate("a")
    assert [call["authorization"] for call in fake.calls] == ["Bearer first"]


def test_what_no_header_can_carry_is_refused_by_name(fake: FakeServer) -> None:
    for token in ["secret\n", "sécret", "a secret", "\x01", ""]:
        with pytest.raises(ValueError, match="^token: expected a token"):
            Client("localhost:1", token=token)
    for client_id in ["é", "a\nb", "\x7f"]:
        with pytest.raises(ValueError, match="^client_id: expected printable ASCII"):
            Client("localhost:1", client_id=client_id)
        with pytest.raises(ValueError, match="^client_id"):
            AsyncClient("localhost:1", client_id=client_id)
    with Client(fake.target, client_id="night shift") as client:
        client.generate("a", metadata=[("trace-bin", b"\x00\xff")])
        with pytest.raises(ValueError, match="^request_id: expected printable ASCII"):
            client.generate("a", request_id="é")
        with pytest.raises(ValueError, match="^metadata 'tenant': expected printable ASCII"):
            client.generate("a", metadata=[("tenant", "é")])
    assert [call["client-id"] for call in fake.calls] == ["night shift"]


def test_only_this_machine_is_loopback() -> None:
    lines = (REPOSITORY / "tests/data/loopback_targets.txt").read_text().splitlines()
    cases = [line.split() for line in lines if not line.startswith("#")]
    assert {kind for kind, _ in cases} == {"loopback", "elsewhere"}
    wrong = [target for kind, target in cases if is_loopback(target) != (kind == "loopback")]
    assert wrong == []


def test_a_token_does_not_cross_the_network_in_the_clear() -> None:
    for target in ["example.com:8001", "127.example.com:8001"]:
        with pytest.raises(ValueError, match="without encryption"):
            Client(target, token="secret")
    for target in [
        "localhost:1",
        "127.0.0.1:1",
        "[::1]:1",
        "unix:/tmp/socket",
        "ipv4:127.0.0.1:1",
    ]:
        Client(target, token="secret").close()
    Client("example.com:8001", token="secret", tls=True).close()
    Client("example.com:8001", token="secret", token_without_tls=True).close()
    with pytest.raises(ValueError, match="without encryption"):
        Client("ipv4:127.0.0.1:1,10.0.0.1:1", token="secret")
    with pytest.raises(ValueError, match="one of token and token_file"):
        Client("localhost:1", token="secret", token_file="/dev/null")


class Certificates:
    """An authority, a server called sketch.test and a client, all good for a day."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self._openssl("req", "-x509", *self._new_key("ca"), "-out", "ca.pem", "-subj", "/CN=ca")
        for name in ("server", "client"):
            (folder / "names").write_text("subjectAltName=DNS:sketch.test")
            self._openssl(
                "req",
                *self._new_key(name),
                "-out",
                f"{name}.csr",
                "-subj",
                f"/CN={name}",
            )
            self._openssl(
                *(
                    "x509",
                    "-req",
                    "-in",
                    f"{name}.csr",
                    "-CA",
                    "ca.pem",
                    "-CAkey",
                    "ca.key",
                ),
                *(
                    "-CAcreateserial",
                    "-days",
                    "1",
                    "-extfile",
                    "names",
                    "-out",
                    f"{name}.pem",
                ),
            )

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    @staticmethod
    def _new_key(name: str) -> tuple[str, ...]:
        return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                "-keyout", f"{name}.key")  # fmt: skip

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


def test_tls_checks_the_server_and_shows_the_client(certificates: Certificates) -> None:
    fake = FakeServer(
        grpc.ssl_server_credentials(
            [(certificates.read("server.key"), certificates.read("server.pem"))],
            certificates.read("ca.pem"),
            require_client_auth=True,
        )
    )
    mutual = Tls(
        ca=certificates.path("ca.pem"),
        certificate=certificates.path("client.pem"),
        key=certificates.path("client.key"),
        server_name="sketch.test",
    )
    once = ultrasketch.RetryPolicy(max_attempts=1)

    async def generate_async() -> None:
        async with AsyncClient(fake.target, tls=mutual, token="secret") as client:
            assert (await client.generate("a")).text == "answer to a"

    try:
        with Client(fake.target, tls=mutual, token="secret") as client:
            assert client.generate("a").text == "answer to a"
        asyncio.run(generate_async())
        assert [call["authorization"] for call in fake.calls] == ["Bearer secret"] * 2
        for stranger in [
            Tls(ca=certificates.path("ca.pem"), server_name="sketch.test"),  # no certificate
            Tls(mutual.ca, mutual.certificate, mutual.key),  # the server is not localhost
            Tls(None, mutual.certificate, mutual.key, "sketch.test"),  # authority unknown
        ]:
            with (
                Client(fake.target, tls=stranger, retry=once) as client,
                pytest.raises(ultrasketch.Unavailable),
            ):
                client.generate("a")
        with pytest.raises(ValueError, match="certificate and key"):
            Tls(certificate=certificates.path("client.pem"))
    finally:
        fake.stop()


def test_the_server_takes_certificates_and_tokens(
    certificates: Certificates, tmp_path: pathlib.Path
) -> None:
    user, admin = "user-token-0123456789", "admin-token-0123456789"
    (tmp_path / "tokens").write_text(f"ci:user:{user}\noperator:admin:{admin}\n")
    server = LiveServer(
        tmp_path / "log",
        *("--model", f"sketch={MODELS / 'classics-20m-sketch'}"),
        *("--tls-cert", certificates.path("server.pem")),
        *("--tls-key", certificates.path("server.key")),
        *("--tls-client-ca", certificates.path("ca.pem")),
        *("--token-file", str(tmp_path / "tokens")),
    )
    mutual = Tls(
        ca=certificates.path("ca.pem"),
        certificate=certificates.path("client.pem"),
        key=certificates.path("client.key"),
        server_name="sketch.test",
    )
    try:
        with Client(server.target, tls=mutual) as client:
            client.wait_ready()
            with pytest.raises(ultrasketch.Unauthenticated):
                client.generate("a", max_tokens=1)
        with Client(server.target, tls=mutual, token=user) as client:
            assert client.stream("a", max_tokens=1).read().usage.completion_tokens == 1
            with pytest.raises(ultrasketch.PermissionDenied):
                client.unload_model("sketch")
        with Client(server.target, tls=mutual, token=admin) as client:
            client.unload_model("sketch")
    finally:
        server.stop()
