"""The commands of docs/grpcurl.md, by a reader of reflection of our own: of both versions."""

import json
import re
import shlex
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

from conftest import REPOSITORY, LiveServer

# Messages of v1 and v1alpha are the same but for the package.
reflection_pb2 = pytest.importorskip("grpc_reflection.v1alpha.reflection_pb2")

TARGET = "localhost:8001"


def commands() -> list[list[str]]:
    page = (REPOSITORY / "docs/grpcurl.md").read_text()
    lines = re.findall(r"^    (grpcurl .*)$", page, re.MULTILINE)
    return [shlex.split(line) for line in lines]


class Reflection:
    def __init__(self, channel: grpc.Channel, version: str) -> None:
        self._call = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            reflection_pb2.ServerReflectionRequest.SerializeToString,
            reflection_pb2.ServerReflectionResponse.FromString,
        )
        self.pool = descriptor_pool.DescriptorPool()
        self._known: set[str] = set()

    def services(self) -> list[str]:
        response = self._ask(list_services="")
        return [service.name for service in response.list_services_response.service]

    def learn(self, symbol: str) -> None:
        self._add(self._ask(file_containing_symbol=symbol))

    def _ask(self, **request: str) -> Any:
        requests = iter([reflection_pb2.ServerReflectionRequest(**request)])
        (response,) = self._call(requests, timeout=60)
        assert not response.HasField("error_response"), response
        return response

    def _add(self, response: Any) -> None:
        for encoded in response.file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(encoded)
            if file.name in self._known:
                continue
            self._known.add(file.name)
            for dependency in file.dependency:
                if dependency not in self._known:
                    self._add(self._ask(file_by_filename=dependency))
            self.pool.Add(file)


def call(channel: grpc.Channel, reflection: Reflection, path: str, data: str) -> list[Any]:
    service, method_name = path.split("/")
    reflection.learn(service)
    method = reflection.pool.FindServiceByName(service).methods_by_name[method_name]
    request = json_format.Parse(data, message_factory.GetMessageClass(method.input_type)())
    response_class = message_factory.GetMessageClass(method.output_type)
    make: Any = channel.unary_stream if method.server_streaming else channel.unary_unary
    answer = make(f"/{path}", type(request).SerializeToString, response_class.FromString)(
        request, timeout=60
    )
    answers = answer if method.server_streaming else [answer]
    return [json.loads(json_format.MessageToJson(message)) for message in answers]


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_the_commands_of_the_page_work(live: LiveServer, version: str) -> None:
    answered = set()
    with grpc.insecure_channel(live.target) as channel:
        reflection = Reflection(channel, version)
        for command in commands():
            assert command[:2] == ["grpcurl", "-plaintext"]
            arguments = command[2:]
            data = "{}"
            if arguments[0] == "-d":
                data = arguments[1]
                arguments = arguments[2:]
            target, *rest = arguments
            assert target == TARGET
            if rest == ["list"]:
                assert f"grpc.reflection.{version}.ServerReflection" in reflection.services()
            elif rest[0] in ("list", "describe"):
                reflection.learn(rest[1])
            else:
                answers = call(channel, reflection, rest[0], data)
                assert len(answers) > 1 if rest[0].endswith("Stream") else len(answers) == 1
                answered.add(rest[0])
    assert len(answered) == 11
