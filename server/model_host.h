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

#include "engine/serving/engine_loop/engine_loop.h"
#include "server/metrics.h"
#include "server/request_translation.h"

namespace ultrasketch {

// A loaded model. Immutable but for what its loop and its metrics do; thread-safe.
struct HostedModel : RequestModel {
  std::string name;
  std::string architecture;  // "llama"
  std::string codec;         // "dense", "fold", ...
  std::string device;        // "cpu", "cuda:0"
  int64_t num_parameters = 0;
  double bits_per_weight_linear = 0;
  double bits_per_weight_file = 0;

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

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_MODEL_HOST_H_
