// A line in the log for each finished call, and the ids that tie it to what others log.
#ifndef ULTRASKETCH_SERVER_REQUEST_LOG_H_
#define ULTRASKETCH_SERVER_REQUEST_LOG_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include <grpcpp/server_context.h>

#include "server/access_policy.h"

namespace ultrasketch {

enum class LoggedRequests : uint8_t { kNone, kErrors, kAll };

struct RequestLogOptions {
  // Errors that are the server's own fault are logged whatever this says.
  LoggedRequests requests = LoggedRequests::kNone;
  // Whether lines have the beginning of the prompt, and messages of errors that may quote it.
  bool prompts = false;
};

// Who a call is, as its metadata say.
struct RequestIdentity {
  std::string id;        // `x-request-id`, or made up
  std::string trace_id;  // of `traceparent` (W3C Trace Context): 32 hexadecimal digits, or ""
  std::string span_id;   // 16, or ""
};

// `request_id` is taken when it is 1 to 128 of the characters A-Z a-z 0-9 . _ : / + = @ -, and
// `traceparent` when it is of version 00 or a later one's form; what is not is as if it were not
// there.
RequestIdentity IdentifyRequest(std::optional<std::string_view> request_id,
                                std::optional<std::string_view> traceparent);

// What is known of a call at its end.
struct FinishedRequest {
  int64_t num_prompt_tokens = 0;
  int64_t num_completion_tokens = 0;
  std::optional<absl::Duration> time_to_first_token;
};

// Who asks: the metadata `client-id`, cut where it is long, or else the peer's address without its
// port.
std::string ClientOf(const grpc::ServerContextBase& context);

// Thread-safe.
class RequestLog {
 public:
  // `policy` names callers by their tokens.
  RequestLog(const RequestLogOptions& options, std::shared_ptr<const AccessPolicy> policy)
      : options_(options), policy_(std::move(policy)) {}

  const RequestLogOptions& options() const { return options_; }
  const AccessPolicy& policy() const { return *policy_; }

  // A line for a call that was refused before any service saw it.
  void LogRefused(std::string_view method, const absl::Status& status) const;

 private:
  const RequestLogOptions options_;
  const std::shared_ptr<const AccessPolicy> policy_;
};

// One call's record, from its arrival to its end. Not thread-safe.
class RequestRecord {
 public:
  // `method` is a literal: "Generate". `log` and `context` outlive the record's use.
  RequestRecord(const RequestLog& log, std::string_view method, grpc::ServerContextBase& context);

  const RequestIdentity& identity() const { return identity_; }

  // The text that the call is about: wanted only when prompts are logged.
  bool wants_prompt() const { return log_.options().prompts; }
  void SetPrompt(std::string_view text);

  // The record is of one request among several of a call, whose trailing metadata are not its own.
  void set_is_part_of_call() { is_part_of_call_ = true; }

  // Writes the line, if the call gets one, and gives the client the request's id as trailing
  // metadata `x-request-id`. Once, before gRPC's Finish. `model` is "" when none was found.
  void Finish(const absl::Status& status, std::string_view model,
              const FinishedRequest& request = {});

 private:
  const RequestLog& log_;
  const std::string_view method_;
  grpc::ServerContextBase& context_;
  const absl::Time arrival_;
  const RequestIdentity identity_;
  std::string prompt_;
  bool is_part_of_call_ = false;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_REQUEST_LOG_H_
