// Client of an ultrasketch server: the calls of proto/ultrasketch/v1 as plain C++.
//
//   US_ASSIGN_OR_RETURN(auto client, client::Client::Create("localhost:8001"));
//   client::GenerateRequest request;
//   request.prompt = "It was a dark and stormy night";
//   request.max_tokens = 64;
//   auto response = client->GenerateStream(
//       request, [](const client::GenerateDelta& delta) { std::cout << delta.text << std::flush;
//       });
//
// Errors keep the server's status code. Its google.rpc details (which field was wrong, when to try
// again) are written out in the message; RetryDelay reads the latter back.
#ifndef ULTRASKETCH_CLIENT_CLIENT_H_
#define ULTRASKETCH_CLIENT_CLIENT_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"

#include "client/channel.h"

namespace ultrasketch::client {

struct CallOptions {
  // The call fails with DEADLINE_EXCEEDED after this long, and the server stops working on it.
  absl::Duration timeout = absl::InfiniteDuration();

  // Requesting a stop cancels the call, from any thread: it returns CANCELLED and the server frees
  // what it held.
  std::stop_token stop{};
};

struct ChatMessage {
  std::string role{};  // usually "system", "user" or "assistant": the model's template decides
  std::string content{};
};

// A conversation. Only for models with `chat` (ModelInfo).
struct Chat {
  std::vector<ChatMessage> messages{};
  std::optional<bool> add_generation_prompt{};  // the prompt ends with the beginning of an answer
};

// Text is tokenized by the server, token ids are taken as they are, and a conversation becomes what
// the model's own chat template makes of it.
using Prompt = std::variant<std::string, std::vector<int32_t>, Chat>;

// What is left unset takes the model's generation_config.json or the neutral value: ranges and
// defaults are in proto/ultrasketch/v1/generation.proto. ({} so that gcc's -Wextra does not ask for
// all fields where some are given by name.)
struct GenerateRequest {
  std::string model{};  // empty: the server's only model
  Prompt prompt{};
  std::optional<int32_t> max_tokens{};
  std::optional<int32_t> min_tokens{};
  std::optional<float> temperature{};
  std::optional<float> top_p{};
  std::optional<int32_t> top_k{};
  std::optional<float> min_p{};
  std::optional<float> repetition_penalty{};
  std::optional<float> presence_penalty{};
  std::optional<float> frequency_penalty{};
  std::vector<std::string> stop{};
  std::vector<int32_t> stop_token_ids{};
  std::optional<bool> ignore_eos{};
  std::optional<bool> include_stop_in_output{};
  std::optional<bool> skip_special_tokens{};
  std::optional<uint64_t> seed{};
  std::optional<int32_t> num_completions{};
  std::optional<int32_t> logprobs{};
  std::optional<int32_t> prompt_logprobs{};
  std::vector<std::pair<int32_t, float>> logit_bias{};  // unique token ids
  std::optional<int32_t> priority{};
  std::optional<bool> add_special_tokens{};
  std::optional<bool> split_special_tokens{};
};

struct ScoreRequest {
  std::string model{};  // empty: the server's only model
  Prompt text{};
  std::optional<int32_t> top_logprobs{};
  std::optional<bool> add_special_tokens{};
  std::optional<bool> split_special_tokens{};
};

struct TokenizeRequest {
  std::string model{};  // empty: the server's only model
  std::string text{};
  std::optional<Chat> chat{};  // in place of the text
  std::optional<bool> add_special_tokens{};
  std::optional<bool> split_special_tokens{};
};

enum class FinishReason { kUnspecified, kStop, kLength, kCancelled, kError };

// "stop", "length", ...
std::string_view FinishReasonName(FinishReason reason);

struct TokenLogprob {
  int32_t token_id = 0;
  float logprob = 0;  // natural logarithm
  std::string text;   // what it adds to the text, UTF-8
  std::string bytes;  // the same, also where it is part of a character
};

struct TokenLogprobs {
  TokenLogprob token;
  std::vector<TokenLogprob> top;  // most likely first
};

// New text and tokens of one completion. Text is whole characters; it may lag behind the tokens.
struct GenerateDelta {
  int32_t index = 0;  // which completion
  std::string text;
  std::vector<int32_t> token_ids;
  std::vector<TokenLogprobs> logprobs;
};

struct Completion {
  std::string text;
  std::vector<int32_t> token_ids;
  FinishReason finish_reason = FinishReason::kUnspecified;
  std::string stop_string;  // the stop string that ended it
  std::vector<TokenLogprobs> logprobs;
};

struct Usage {
  int32_t prompt_tokens = 0;
  int32_t completion_tokens = 0;  // over all completions
  int32_t total_tokens = 0;
  int32_t cached_prompt_tokens = 0;
};

// As the server measured it.
struct Timing {
  absl::Duration queue;
  absl::Duration prefill;
  absl::Duration decode;  // of the completion that took longest
  int32_t steps = 0;
  double mean_batch_size = 0;
};

struct GenerateResponse {
  std::string model;
  std::vector<Completion> completions;
  Usage usage;
  uint64_t seed = 0;  // the effective one
  Timing timing;
  std::vector<TokenLogprobs> prompt_logprobs;
};

struct Score {
  std::vector<int32_t> token_ids;
  std::vector<TokenLogprobs> logprobs;  // of token_ids[1..]
  double sum_logprob = 0;
  double perplexity = 0;
};

struct Tokens {
  std::vector<int32_t> ids;
  std::vector<std::string> spellings;  // as in the vocabulary, parallel to ids
};

// Times of steps of a compressed model over those of the same steps with uncompressed layers.
struct SketchOverhead {
  double prefill = 0;
  double decode = 0;
};

// What a compressed model was worth when it was made, on a text of its maker's choice.
struct ModelEvaluation {
  double perplexity = 0;
  double dense_perplexity = 0;  // of the model it was made from, on the same tokens
  int64_t num_tokens = 0;       // predicted
  int32_t context_tokens = 0;   // of a window
};

struct ModelInfo {
  std::string name;
  std::string state;  // "loading", "ready", "draining", "failed"
  std::string error;  // why it failed
  std::string architecture;
  std::string codec;
  std::string device;
  int64_t num_parameters = 0;
  double bits_per_weight_linear = 0;
  double bits_per_weight_file = 0;
  int32_t max_context_tokens = 0;
  bool chat = false;  // takes conversations
  int32_t vocab_size = 0;
  std::string kv_cache_type;  // "fp16", "int8", ...
  int64_t weights_bytes = 0;
  int64_t embedding_bytes = 0;
  int64_t kv_cache_bytes = 0;
  int64_t workspace_bytes = 0;
  std::string weights_checksum;                   // empty: the model's files carry no checksums
  std::optional<SketchOverhead> sketch_overhead;  // as last measured
  std::optional<ModelEvaluation> evaluation;      // as its maker recorded it
};

// Thread-safe. Calls block the calling thread, and take answers of any size. The connection is made
// at the first call and again whenever it was lost; a server that cannot be reached is UNAVAILABLE.
class Client {
 public:
  // `target` is HOST:PORT, unix:PATH or any gRPC target. INVALID_ARGUMENT as CreateChannel. Does
  // not connect yet.
  static absl::StatusOr<std::unique_ptr<Client>> Create(const std::string& target,
                                                        const ChannelOptions& options = {});
  ~Client();
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  absl::StatusOr<GenerateResponse> Generate(const GenerateRequest& request,
                                            const CallOptions& options = {});

  // Calls `on_delta` on this thread as tokens arrive, and returns the whole.
  absl::StatusOr<GenerateResponse> GenerateStream(
      const GenerateRequest& request, const std::function<void(const GenerateDelta&)>& on_delta,
      const CallOptions& options = {});

  absl::StatusOr<Score> ScoreText(const ScoreRequest& request, const CallOptions& options = {});

  absl::StatusOr<Tokens> Tokenize(const TokenizeRequest& request, const CallOptions& options = {});
  absl::StatusOr<std::string> Detokenize(const std::string& model,
                                         absl::Span<const int32_t> token_ids,
                                         bool skip_special_tokens = false,
                                         const CallOptions& options = {});

  // What the server's health service answers for a model's name, or for the server when `service`
  // is empty: "SERVING", "NOT_SERVING", ... NOT_FOUND when it knows no such service.
  absl::StatusOr<std::string> Health(const std::string& service, const CallOptions& options = {});

  absl::StatusOr<std::vector<ModelInfo>> ListModels(const CallOptions& options = {});
  absl::StatusOr<ModelInfo> GetModel(const std::string& name, const CallOptions& options = {});

  // Returns when the model serves requests.
  absl::StatusOr<ModelInfo> LoadModel(const std::string& name, const CallOptions& options = {});

  // Returns when requests in flight have finished and the memory is free.
  absl::Status UnloadModel(const std::string& name, const CallOptions& options = {});

  // Measures a compressed model's overhead anew.
  absl::StatusOr<SketchOverhead> MeasureOverhead(const std::string& name,
                                                 const CallOptions& options = {});

 private:
  struct Impl;
  explicit Client(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// How long the server asks to wait before the call is tried again; nullopt when it did not say.
std::optional<absl::Duration> RetryDelay(const absl::Status& status);

}  // namespace ultrasketch::client

#endif  // ULTRASKETCH_CLIENT_CLIENT_H_
