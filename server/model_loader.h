// From a folder to a model that takes requests.
#ifndef ULTRASKETCH_SERVER_MODEL_LOADER_H_
#define ULTRASKETCH_SERVER_MODEL_LOADER_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

#include "engine/bench/sketch_overhead.h"
#include "engine/kv/cache_layout.h"
#include "engine/models/model.h"
#include "engine/serving/engine_loop/device_turns.h"
#include "engine/serving/engine_loop/engine_loop.h"
#include "server/metrics.h"
#include "server/model_host.h"
#include "server/model_repository.h"

namespace ultrasketch {

struct ModelLoadOptions {
  std::string device = "auto";  // as CreateBackend takes it
  int num_threads = 0;          // CPU threads of the models; 0: all that the process may use
  // Unset: as much of what is free as PlanKvCacheTokens says.
  std::optional<int64_t> kv_cache_tokens;
  KvCacheType kv_cache_type = KvCacheType::kFp16;
  // Most bytes that all models of a device may hold together, KV caches in full; 0: what there is.
  int64_t memory_limit_bytes = 0;
  // Of one prompt, and of one completion; 0: as many as the context takes.
  int32_t max_prompt_tokens = 0;
  int32_t max_completion_tokens = 0;
  EngineLoopOptions engine_loop;  // but for `turns`, which the loader sets
};

// Loads models one after the other. Models of one device take turns on it. Not thread-safe.
class ModelLoader {
 public:
  // `metrics` must outlive the loader.
  ModelLoader(ModelLoadOptions options, Metrics& metrics)
      : options_(std::move(options)), metrics_(metrics) {}

  // Reads the checkpoint and the tokenizer, loads the weights on the device and starts the engine's
  // thread. `held` are the models that are in memory already: what they may still come to hold is
  // not available, and when the new one needs more than is left it is RESOURCE_EXHAUSTED, with
  // bytes needed and available, before anything is allocated. What OpenModel warns about is logged,
  // as event model_warning, and what came of it as model_loaded or model_failed. Errors are those
  // of the parts.
  absl::StatusOr<std::shared_ptr<HostedModel>> Load(
      const ModelSource& source, const std::vector<std::shared_ptr<const HostedModel>>& held);

  // Measures what a model's compression does to the time of its steps, on its device, where the
  // measurement's steps take turns with those of the models, in a tenth of a model's share. `held`
  // as for Load: RESOURCE_EXHAUSTED when memory is not left for it. FAILED_PRECONDITION for a model
  // that is not compressed, CANCELLED soon after `is_cancelled` has become true. What came of it is
  // logged, as overhead_measured or overhead_not_measured.
  absl::StatusOr<SketchOverhead> MeasureOverhead(
      const HostedModel& model, const std::vector<std::shared_ptr<const HostedModel>>& held,
      const std::function<bool()>& is_cancelled);

 private:
  absl::StatusOr<SketchOverhead> TryMeasureOverhead(
      const HostedModel& model, const std::vector<std::shared_ptr<const HostedModel>>& held,
      const std::function<bool()>& is_cancelled);
  absl::StatusOr<std::shared_ptr<HostedModel>> TryLoad(
      const ModelSource& source, const std::vector<std::shared_ptr<const HostedModel>>& held);

  const ModelLoadOptions options_;
  Metrics& metrics_;
  std::map<std::string, std::shared_ptr<DeviceTurns>> turns_;  // by the device's name
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_MODEL_LOADER_H_
