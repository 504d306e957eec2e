// Errors on their way to the client: gRPC status with google.rpc details.
//
// Inside the server an error is an absl::Status. What a program on the other side may need travels
// as payloads, attached by the functions here; the field that is wrong is the beginning of an
// INVALID_ARGUMENT's message ("max_tokens: 0 is less than 1").
#ifndef ULTRASKETCH_SERVER_STATUS_H_
#define ULTRASKETCH_SERVER_STATUS_H_

#include <map>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include <grpcpp/server_context.h>
#include <grpcpp/support/status.h>

namespace ultrasketch {

// The domain of our ErrorInfo details.
inline constexpr std::string_view kErrorDomain = "ultrasketch.v1";

// INVALID_ARGUMENT "<field>: <description>".
absl::Status InvalidField(std::string_view field, std::string_view description);

// `status` with a google.rpc.ErrorInfo: a constant reason for programs, such as QUEUE_FULL.
absl::Status WithReason(absl::Status status, std::string_view reason,
                        const std::map<std::string, std::string>& metadata = {});

// The reason that WithReason attached; "" when there is none.
std::string ReasonOf(const absl::Status& status);

// The field that an INVALID_ARGUMENT names; "" when it names none.
std::string FieldOf(const absl::Status& status);

// `status` with a google.rpc.RetryInfo.
absl::Status WithRetryDelay(absl::Status status, absl::Duration delay);

// A refusal that a later try may escape, with the reason and with when to try again.
absl::Status TryAgainLater(absl::Status status, std::string_view reason, absl::Duration delay);
bool IsTryAgainLater(const absl::Status& status);
// Too many requests, or tokens, wait for the model.
inline constexpr std::string_view kQueueFullReason = "QUEUE_FULL";
// Too long texts wait.
inline constexpr std::string_view kQueuedBytesFullReason = "QUEUED_BYTES_FULL";
// Too many requests are open in the server, or of the client.
inline constexpr std::string_view kServerFullReason = "SERVER_FULL";
inline constexpr std::string_view kClientFullReason = "CLIENT_FULL";
// Too much that was answered has not been read.
inline constexpr std::string_view kUnreadAnswersReason = "UNREAD_ANSWERS";
// The client has not read its stream for too long, or too little of it. No retry is asked for.
inline constexpr std::string_view kSlowReaderReason = "SLOW_READER";

// The one way from absl::Status to gRPC: same code and message (cut where it would exceed what
// gRPC's headers can carry), with a google.rpc.Status of the same and all details: BadRequest for
// an INVALID_ARGUMENT that names its field, and what the functions above attached.
grpc::Status ToGrpcStatus(const absl::Status& status);

// The same for a call of `context`, before its Finish. A retry delay goes into the trailing
// metadata `grpc-retry-pushback-ms`, too: the only one that the retry policies of gRPC's libraries
// honour.
grpc::Status ToGrpcStatus(const absl::Status& status, grpc::ServerContextBase& context);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_STATUS_H_
