#include "client/grpc_status.h"

#include <optional>
#include <string>
#include <vector>

#include "absl/strings/cord.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

#include "client/client.h"

namespace ultrasketch::client {
namespace {

constexpr char kRetryDelayPayload[] = "type.googleapis.com/google.rpc.RetryInfo";

absl::Duration ToDuration(const google::protobuf::Duration& duration) {
  return absl::Seconds(duration.seconds()) + absl::Nanoseconds(duration.nanos());
}

std::string DescribeViolation(const google::rpc::BadRequest::FieldViolation& violation) {
  if (violation.field().empty()) return violation.description();
  return absl::StrCat(violation.field(), ": ", violation.description());
}

// What the message does not say already.
void AppendUnlessSaid(const std::string& text, const std::string& message,
                      std::vector<std::string>* additions) {
  if (!text.empty() && !absl::StrContains(message, text)) additions->push_back(text);
}

}  // namespace

absl::Status FromGrpcStatus(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  const std::string message = status.error_message();
  std::vector<std::string> additions;
  std::optional<google::rpc::RetryInfo> retry_info;

  google::rpc::Status details;
  if (details.ParseFromString(status.error_details())) {
    for (const google::protobuf::Any& detail : details.details()) {
      google::rpc::BadRequest bad_request;
      google::rpc::ErrorInfo error_info;
      google::rpc::RetryInfo retry;
      if (detail.UnpackTo(&bad_request)) {
        for (const auto& violation : bad_request.field_violations()) {
          // The description alone may be the message; then the field is still news.
          if (absl::StrContains(message, violation.field()) &&
              absl::StrContains(message, violation.description())) {
            continue;
          }
          AppendUnlessSaid(DescribeViolation(violation), message, &additions);
        }
      } else if (detail.UnpackTo(&error_info)) {
        AppendUnlessSaid(error_info.reason(), message, &additions);
        for (const auto& [key, value] : error_info.metadata()) {
          additions.push_back(absl::StrCat(key, "=", value));
        }
      } else if (detail.UnpackTo(&retry)) {
        additions.push_back(
            absl::StrCat("retry after ", absl::FormatDuration(ToDuration(retry.retry_delay()))));
        retry_info = retry;
      }
    }
  }

  std::string whole = message;
  if (!additions.empty()) absl::StrAppend(&whole, " (", absl::StrJoin(additions, "; "), ")");
  absl::Status result(static_cast<absl::StatusCode>(status.error_code()), whole);
  if (retry_info.has_value()) {
    result.SetPayload(kRetryDelayPayload, absl::Cord(retry_info->SerializeAsString()));
  }
  return result;
}

std::string ErrorReason(const grpc::Status& status) {
  google::rpc::Status details;
  google::rpc::ErrorInfo error_info;
  if (!details.ParseFromString(status.error_details())) return "";
  for (const google::protobuf::Any& detail : details.details()) {
    if (detail.UnpackTo(&error_info)) return error_info.reason();
  }
  return "";
}

std::optional<absl::Duration> RetryDelay(const absl::Status& status) {
  const absl::optional<absl::Cord> payload = status.GetPayload(kRetryDelayPayload);
  google::rpc::RetryInfo retry_info;
  if (!payload.has_value() || !retry_info.ParseFromString(std::string(*payload))) {
    return std::nullopt;
  }
  return ToDuration(retry_info.retry_delay());
}

}  // namespace ultrasketch::client
