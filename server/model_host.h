// The models that a server hosts: name to model, and whether it takes requests.
#ifndef ULTRASKETCH_SERVER_MODEL_HOST_H_
#define ULTRASKETCH_SERVER_MODEL_HOST_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

#include "engine/format/model_config.h"
#include "engine/format/tokenizer/tokenizer.h"
#include "server/engine_loop/engine_loop.h"
#include "server/metrics.h"

namespace ultrasketch {

// A loaded model. Immutable but for what its loop and its metrics do; thread-safe.
struct HostedModel {
  std::string name;
  std::string architecture;  // "llama"
  std::string codec;         // "dense", "fold", ...
  std::string device;        // "cpu", "cuda:0"
  int64_t num_parameters = 0;
  double bits_per_weight_linear = 0;
  double bits_per_weight_file = 0;
  // Most tokens of prompt and completion together: the model's context, or the KV cache if smaller.
  int32_t max_context_tokens = 0;
  int32_t vocab_size = 0;
  int32_t max_token_bytes = 0;  // of the longest token's text: bounds how long a prompt may be
  GenerationConfig generation_config;
  std::vector<int32_t> eos_token_ids;

  std::shared_ptr<const Tokenizer> tokenizer;
  std::shared_ptr<ModelMetrics> metrics;
  std::unique_ptr<EngineLoop> engine_loop;  // last: its destruction ends what uses the rest
};

enum class ModelState : uint8_t { kReady, kDraining };

// Thread-safe.
class ModelHost {
 public:
  // ALREADY_EXISTS when the name is taken, INVALID_ARGUMENT when it is not usable as a name: 1 to
  // 128 printable ASCII characters without spaces, quotes and backslashes.
  absl::Status Add(std::shared_ptr<HostedModel> model);

  // The model to serve a request with. `name` empty means the only one hosted. INVALID_ARGUMENT
  // when that is ambiguous, NOT_FOUND (listing the names there are) or UNAVAILABLE while draining.
  absl::StatusOr<std::shared_ptr<const HostedModel>> FindReady(std::string_view name) const;

  struct Listing {
    std::shared_ptr<const HostedModel> model;
    ModelState state = ModelState::kReady;
  };

  // By name, whatever the state.
  std::vector<Listing> List() const;
  absl::StatusOr<Listing> Get(std::string_view name) const;

  // Refuses further requests, waits for those in flight until the deadline and then cancels them.
  // May be called again from another thread, with an earlier deadline.
  void Drain(absl::Time deadline);

 private:
  absl::Status NotFound(std::string_view name) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  std::string Names() const ABSL_SHARED_LOCKS_REQUIRED(mutex_);

  mutable absl::Mutex mutex_;
  std::map<std::string, Listing, std::less<>> models_ ABSL_GUARDED_BY(mutex_);
};

// The bytes of the longest token's text, as spelled in the vocabulary.
int32_t LongestTokenBytes(const Tokenizer& tokenizer);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_MODEL_HOST_H_
