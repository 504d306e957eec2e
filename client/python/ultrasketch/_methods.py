"""The services' calls with the types of their messages, for channels of grpc and grpc.aio."""

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import Message

from . import _health
from .v1 import generation_pb2, model_pb2

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


@dataclass(frozen=True, slots=True)
class Method(Generic[Request, Response]):
    path: str
    request: type[Request]
    response: type[Response]


def _path(file: FileDescriptor, service: str, method: str) -> str:
    descriptor = file.services_by_name[service]
    return f"/{descriptor.full_name}/{descriptor.methods_by_name[method].name}"


def _generation(method: str) -> str:
    return _path(generation_pb2.DESCRIPTOR, "GenerationService", method)


def _models(method: str) -> str:
    return _path(model_pb2.DESCRIPTOR, "ModelService", method)


GENERATE = Method(
    _generation("Generate"), generation_pb2.GenerateRequest, generation_pb2.GenerateResponse
)
GENERATE_STREAM = Method(
    _generation("GenerateStream"),
    generation_pb2.GenerateRequest,
    generation_pb2.GenerateStreamResponse,
)
SCORE = Method(_generation("Score"), generation_pb2.ScoreRequest, generation_pb2.ScoreResponse)
TOKENIZE = Method(
    _generation("Tokenize"), generation_pb2.TokenizeRequest, generation_pb2.TokenizeResponse
)
DETOKENIZE = Method(
    _generation("Detokenize"), generation_pb2.DetokenizeRequest, generation_pb2.DetokenizeResponse
)
LIST_MODELS = Method(
    _models("ListModels"), model_pb2.ListModelsRequest, model_pb2.ListModelsResponse
)
GET_MODEL = Method(_models("GetModel"), model_pb2.GetModelRequest, model_pb2.Model)
LOAD_MODEL = Method(_models("LoadModel"), model_pb2.LoadModelRequest, model_pb2.Model)
UNLOAD_MODEL = Method(
    _models("UnloadModel"), model_pb2.UnloadModelRequest, model_pb2.UnloadModelResponse
)
MEASURE_OVERHEAD = Method(
    _models("MeasureOverhead"), model_pb2.MeasureOverheadRequest, model_pb2.SketchOverhead
)
HEALTH_CHECK = Method(
    "/grpc.health.v1.Health/Check",
    _health.HealthCheckRequest,
    _health.HealthCheckResponse,
)


def health_request(service: str) -> Message:
    request: Message = _health.HealthCheckRequest(service=service)
    return request


def health_name(message: Any) -> str:
    """ "SERVING", "NOT_SERVING", ..."""
    return _health.status_name(message.status)
