// Who answers a conversation: a server, or a model in this process.
#ifndef ULTRASKETCH_CLIENT_CLI_CHAT_BACKEND_H_
#define ULTRASKETCH_CLIENT_CLI_CHAT_BACKEND_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

#include "client/cli/local_model.h"
#include "client/client.h"

namespace ultrasketch::cli {

// Used by one thread.
class ChatBackend {
 public:
  virtual ~ChatBackend() = default;

  // The model's name, and the most tokens of prompt and answer together.
  const std::string& name() const { return name_; }
  int32_t max_context_tokens() const { return max_context_tokens_; }

  // As Client::GenerateStream; the request's model is set here.
  virtual absl::StatusOr<client::GenerateResponse> GenerateStream(
      client::GenerateRequest request,
      const std::function<void(const client::GenerateDelta&)>& on_delta,
      const client::CallOptions& options) = 0;

  // How many tokens the conversation's prompt has.
  virtual absl::StatusOr<int64_t> CountTokens(const client::Chat& chat,
                                              const client::CallOptions& options) = 0;

 protected:
  std::string name_;
  int32_t max_context_tokens_ = 0;
};

// A model of a server; `model` may be empty when it hosts just one. FAILED_PRECONDITION when the
// model takes no conversations, UNAVAILABLE when it is not ready.
absl::StatusOr<std::unique_ptr<ChatBackend>> OpenRemoteChat(std::unique_ptr<client::Client> client,
                                                            const std::string& model,
                                                            const client::CallOptions& options);

// A model that is loaded for the conversation, with a KV cache for one sequence.
// FAILED_PRECONDITION when the model takes no conversations.
absl::StatusOr<std::unique_ptr<ChatBackend>> OpenLocalChat(const LocalModelOptions& model);

}  // namespace ultrasketch::cli

#endif  // ULTRASKETCH_CLIENT_CLI_CHAT_BACKEND_H_
