#include "server/status.h"

#include <optional>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/types/optional.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

#include "engine/base/strings.h"

namespace ultrasketch {
namespace {

constexpr absl::string_view kTypeUrlPrefix = "type.googleapis.com/google.rpc.";

// Status message, details and their copy of the message share 8 KiB of headers, base64 included.
constexpr size_t kMaxMessageBytes = 1024;

constexpr char kPushbackKey[] = "grpc-retry-pushback-ms";

template <typename Detail>
std::string TypeUrl() {
  return absl::StrCat("type.googleapis.com/", Detail::descriptor()->full_name());
}

template <typename Detail>
absl::Status WithDetail(absl::Status status, const Detail& detail) {
  if (status.ok()) return status;
  status.SetPayload(TypeUrl<Detail>(), absl::Cord(detail.SerializeAsString()));
  return status;
}

// nullopt when `status` has no such detail.
template <typename Detail>
std::optional<Detail> FindDetail(const absl::Status& status) {
  const absl::optional<absl::Cord> payload = status.GetPayload(TypeUrl<Detail>());
  Detail detail;
  if (!payload.has_value() || !detail.ParseFromString(std::string(*payload))) return std::nullopt;
  return detail;
}

// The field in "field: description".
std::optional<std::string_view> FieldOf(std::string_view message) {
  const size_t colon = message.find(": ");
  if (colon == std::string_view::npos || colon == 0) return std::nullopt;
  for (const char c : message.substr(0, colon)) {
    if (!(c >= 'a' && c <= 'z') && !(c >= '0' && c <= '9') && c != '_') return std::nullopt;
  }
  return message.substr(0, colon);
}

std::string BoundedMessage(absl::string_view message) {
  std::string bounded(message);
  if (!IsValidUtf8(bounded)) bounded = Quoted(bounded, kMaxMessageBytes);
  if (bounded.size() <= kMaxMessageBytes) return bounded;
  size_t end = kMaxMessageBytes;
  while (end > 0 && (static_cast<unsigned char>(bounded[end]) & 0xC0) == 0x80) --end;
  return absl::StrCat(absl::string_view(bounded.data(), end), "...");
}

}  // namespace

absl::Status InvalidField(std::string_view field, std::string_view description) {
  return absl::InvalidArgumentError(absl::StrCat(A(field), ": ", A(description)));
}

absl::Status WithReason(absl::Status status, std::string_view reason,
                        const std::map<std::string, std::string>& metadata) {
  google::rpc::ErrorInfo info;
  info.set_reason(std::string(reason));
  info.set_domain(std::string(kErrorDomain));
  for (const auto& [key, value] : metadata) (*info.mutable_metadata())[key] = value;
  return WithDetail(std::move(status), info);
}

std::string FieldOf(const absl::Status& status) {
  if (!absl::IsInvalidArgument(status)) return "";
  return std::string(FieldOf(S(status.message())).value_or(""));
}

absl::Status WithRetryDelay(absl::Status status, absl::Duration delay) {
  google::rpc::RetryInfo info;
  const int64_t seconds = absl::IDivDuration(delay, absl::Seconds(1), &delay);
  info.mutable_retry_delay()->set_seconds(seconds);
  info.mutable_retry_delay()->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(delay)));
  return WithDetail(std::move(status), info);
}

std::string ReasonOf(const absl::Status& status) {
  const auto info = FindDetail<google::rpc::ErrorInfo>(status);
  return info.has_value() ? info->reason() : "";
}

absl::Status TryAgainLater(absl::Status status, std::string_view reason, absl::Duration delay) {
  return WithReason(WithRetryDelay(std::move(status), delay), reason);
}

bool IsTryAgainLater(const absl::Status& status) {
  return status.GetPayload(TypeUrl<google::rpc::RetryInfo>()).has_value();
}

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  google::rpc::Status details;
  details.set_code(status.raw_code());
  details.set_message(BoundedMessage(status.message()));
  if (absl::IsInvalidArgument(status)) {
    if (const auto field = FieldOf(details.message())) {
      google::rpc::BadRequest bad_request;
      google::rpc::BadRequest::FieldViolation& violation = *bad_request.add_field_violations();
      violation.set_field(std::string(*field));
      violation.set_description(details.message().substr(field->size() + 2));
      details.add_details()->PackFrom(bad_request);
    }
  }
  status.ForEachPayload([&](absl::string_view type_url, const absl::Cord& payload) {
    if (!absl::StartsWith(type_url, kTypeUrlPrefix)) return;
    google::protobuf::Any& detail = *details.add_details();
    detail.set_type_url(std::string(type_url));
    detail.set_value(std::string(payload));
  });
  return grpc::Status(static_cast<grpc::StatusCode>(status.raw_code()), details.message(),
                      details.SerializeAsString());
}

grpc::Status ToGrpcStatus(const absl::Status& status, grpc::ServerContextBase& context) {
  if (const auto retry = FindDetail<google::rpc::RetryInfo>(status)) {
    const absl::Duration delay = absl::Seconds(retry->retry_delay().seconds()) +
                                 absl::Nanoseconds(retry->retry_delay().nanos());
    context.AddTrailingMetadata(kPushbackKey, absl::StrCat(absl::ToInt64Milliseconds(delay)));
  }
  return ToGrpcStatus(status);
}

}  // namespace ultrasketch
