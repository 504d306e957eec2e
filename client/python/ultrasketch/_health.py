"""grpc.health.v1, which every gRPC server speaks, as messages of this package alone.

grpcio-health-checking has the same, but each of its releases is for few releases of protobuf: it
would keep this package from being imported beside others that need an older one. A pool of its own,
because protobuf admits one definition of a name in the common one."""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

# Of https://github.com/grpc/grpc-proto, as much of it as is spoken here.
_FILE = descriptor_pb2.FileDescriptorProto(
    name="grpc/health/v1/health.proto", package="grpc.health.v1", syntax="proto3"
)
_FIELD = descriptor_pb2.FieldDescriptorProto

_request = _FILE.message_type.add(name="HealthCheckRequest")
_request.field.add(name="service", number=1, type=_FIELD.TYPE_STRING, label=_FIELD.LABEL_OPTIONAL)
_response = _FILE.message_type.add(name="HealthCheckResponse")
_status = _response.enum_type.add(name="ServingStatus")
for _number, _name in enumerate(("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")):
    _status.value.add(name=_name, number=_number)
_response.field.add(
    name="status",
    number=1,
    type=_FIELD.TYPE_ENUM,
    type_name=".grpc.health.v1.HealthCheckResponse.ServingStatus",
    label=_FIELD.LABEL_OPTIONAL,
)

_pool = descriptor_pool.DescriptorPool()
_pool.Add(_FILE)
HealthCheckRequest: Any = message_factory.GetMessageClass(
    _pool.FindMessageTypeByName("grpc.health.v1.HealthCheckRequest")
)
HealthCheckResponse: Any = message_factory.GetMessageClass(
    _pool.FindMessageTypeByName("grpc.health.v1.HealthCheckResponse")
)


def status_name(number: int) -> str:
    """ "SERVING", "NOT_SERVING", ...; "UNKNOWN" of a number that this package does not know."""
    value = HealthCheckResponse.DESCRIPTOR.enum_types_by_name["ServingStatus"].values_by_number
    return value[number].name if number in value else "UNKNOWN"
