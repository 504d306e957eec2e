// From gRPC's status to Abseil's, google.rpc details included.
#ifndef ULTRASKETCH_CLIENT_GRPC_STATUS_H_
#define ULTRASKETCH_CLIENT_GRPC_STATUS_H_

#include <string>

#include "absl/status/status.h"
#include <grpcpp/support/status.h>

namespace ultrasketch::client {

// Keeps the code. The message gains what the details say and it does not: field violations, error
// reason, retry delay. Details that do not parse are left out.
absl::Status FromGrpcStatus(const grpc::Status& status);

// The reason of the status's google.rpc.ErrorInfo; "" when it has none.
std::string ErrorReason(const grpc::Status& status);

}  // namespace ultrasketch::client

#endif  // ULTRASKETCH_CLIENT_GRPC_STATUS_H_
