#include "server/request_log.h"

#include <algorithm>
#include <random>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"

#include "engine/base/strings.h"
#include "server/log.h"
#include "server/status.h"

namespace ultrasketch {
namespace {

constexpr char kRequestIdKey[] = "x-request-id";
constexpr size_t kMaxIdBytes = 128;
// Beyond them two clients count as one.
constexpr size_t kMaxClientBytes = 128;
constexpr size_t kMaxPromptBytes = 1024;  // more does not get into a line

std::string NewId() {
  // Ids only have to differ: who guesses one gains nothing.
  thread_local std::mt19937_64 generator{std::random_device{}()};
  return absl::StrFormat("%016x%016x", generator(), generator());
}

bool IsId(std::string_view text) {
  return !text.empty() && text.size() <= kMaxIdBytes &&
         std::all_of(text.begin(), text.end(), [](char c) {
           return absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
                  std::string_view("._:/+=@-").find(c) != std::string_view::npos;
         });
}

// Lower-case digits, not all of them 0.
bool IsTraceField(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); }) &&
         text.find_first_not_of('0') != std::string_view::npos;
}

// VERSION-TRACE-SPAN-FLAGS; versions after 00 may go on after another dash.
void ParseTraceparent(std::string_view text, RequestIdentity& identity) {
  constexpr size_t kBytes = 55;
  if (text.size() < kBytes || text[2] != '-' || text[35] != '-' || text[52] != '-') return;
  const std::string_view version = text.substr(0, 2);
  const std::string_view trace_id = text.substr(3, 32);
  const std::string_view span_id = text.substr(36, 16);
  const bool is_known = version == "00";
  if (!is_known && (!IsTraceField(version) || version == "ff")) return;
  if (text.size() > kBytes && (is_known || text[kBytes] != '-')) return;
  if (!IsTraceField(trace_id) || !IsTraceField(span_id)) return;
  identity.trace_id = std::string(trace_id);
  identity.span_id = std::string(span_id);
}

std::optional<std::string_view> Metadata(const grpc::ServerContextBase& context, const char* key) {
  const auto found = context.client_metadata().find(key);
  if (found == context.client_metadata().end()) return std::nullopt;
  return std::string_view(found->second.data(), found->second.size());
}

// The client's doing, rather than something that an operator should know.
bool IsServerFault(const absl::Status& status) {
  return absl::IsInternal(status) || absl::IsDataLoss(status) || absl::IsUnknown(status);
}

std::string Seconds(absl::Duration duration) {
  return absl::StrFormat("%.6f", absl::ToDoubleSeconds(duration));
}

}  // namespace

RequestIdentity IdentifyRequest(std::optional<std::string_view> request_id,
                                std::optional<std::string_view> traceparent) {
  RequestIdentity identity;
  identity.id = request_id.has_value() && IsId(*request_id) ? std::string(*request_id) : NewId();
  if (traceparent.has_value()) ParseTraceparent(*traceparent, identity);
  return identity;
}

std::string ClientOf(const grpc::ServerContextBase& context) {
  if (const auto id = Metadata(context, "client-id")) {
    return std::string(id->substr(0, kMaxClientBytes));
  }
  const std::string peer = context.peer();
  return peer.substr(0, peer.rfind(':'));
}

void RequestLog::LogRefused(std::string_view method, const absl::Status& status) const {
  if (options_.requests == LoggedRequests::kNone) return;
  LogEvent(LogLevel::kInfo, "request_refused",
           {{"method", std::string(method.substr(method.rfind('/') + 1))},
            {"code", absl::StatusCodeToString(status.code())},
            {"error", std::string(status.message())}});
}

RequestRecord::RequestRecord(const RequestLog& log, std::string_view method,
                             grpc::ServerContextBase& context)
    : log_(log),
      method_(method),
      context_(context),
      arrival_(absl::Now()),
      identity_(
          IdentifyRequest(Metadata(context, kRequestIdKey), Metadata(context, "traceparent"))) {}

void RequestRecord::SetPrompt(std::string_view text) {
  if (wants_prompt()) prompt_ = std::string(text.substr(0, kMaxPromptBytes));
}

void RequestRecord::Finish(const absl::Status& status, std::string_view model,
                           const FinishedRequest& request) {
  if (!is_part_of_call_) context_.AddTrailingMetadata(kRequestIdKey, identity_.id);
  const bool is_server_fault = IsServerFault(status);
  const LoggedRequests logged = log_.options().requests;
  if (!is_server_fault && logged != LoggedRequests::kAll &&
      (status.ok() || logged == LoggedRequests::kNone)) {
    return;
  }
  std::vector<LogField> fields = {{"request_id", identity_.id}};
  if (!identity_.trace_id.empty()) {
    fields.emplace_back("trace_id", identity_.trace_id);
    fields.emplace_back("span_id", identity_.span_id);
  }
  fields.emplace_back("method", std::string(method_));
  if (!model.empty()) fields.emplace_back("model", std::string(model));
  const std::string caller = log_.policy().CallerName(Metadata(context_, "authorization"));
  fields.emplace_back("client", caller.empty() ? ClientOf(context_) : caller);
  fields.emplace_back("code", absl::StatusCodeToString(status.code()));
  if (!status.ok()) {
    if (const std::string reason = ReasonOf(status); !reason.empty()) {
      fields.emplace_back("reason", reason);
    }
    // That of an INVALID_ARGUMENT quotes what was wrong, which may be the prompt.
    if (log_.options().prompts || !absl::IsInvalidArgument(status)) {
      fields.emplace_back("error", std::string(status.message()));
    } else if (const std::string field = FieldOf(status); !field.empty()) {
      fields.emplace_back("field", field);
    }
  }
  fields.emplace_back("prompt_tokens", LogNumber(request.num_prompt_tokens));
  fields.emplace_back("completion_tokens", LogNumber(request.num_completion_tokens));
  if (request.time_to_first_token.has_value()) {
    fields.emplace_back("first_token_seconds", LogNumber(Seconds(*request.time_to_first_token)));
  }
  fields.emplace_back("duration_seconds", LogNumber(Seconds(absl::Now() - arrival_)));
  if (!prompt_.empty()) fields.emplace_back("prompt", prompt_);
  LogEvent(is_server_fault ? LogLevel::kError : LogLevel::kInfo, "request", fields);
}

}  // namespace ultrasketch
