// How much memory a model will take, before anything is allocated, and how large a KV cache fits.
#ifndef ULTRASKETCH_ENGINE_MODELS_MEMORY_PLAN_H_
#define ULTRASKETCH_ENGINE_MODELS_MEMORY_PLAN_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "engine/backends/backend.h"
#include "engine/format/checkpoint.h"
#include "engine/models/model.h"

namespace ultrasketch {

// What a model with these options holds on the backend's device when every sequence is as long as
// can be; from the checkpoint's headers. An upper bound.
MemoryUsage EstimateMemory(const Checkpoint& checkpoint, const ModelOptions& options,
                           const Backend& backend);

// RESOURCE_EXHAUSTED, with bytes needed and available, when `needed` is more than is available.
absl::Status CheckFits(const MemoryUsage& needed, int64_t available_bytes);

struct MemoryBudget {
  int64_t available_bytes = 0;  // that the model may take in all
  int64_t max_sequences = 1;    // that it will compute together
};

// The capacity of a KV cache, in tokens: enough for `max_sequences` of the model's context, at most
// half of what weights and workspace leave of the budget, and at least `block_size` tokens.
// RESOURCE_EXHAUSTED, with bytes needed and available, when not even that fits.
absl::StatusOr<int64_t> PlanKvCacheTokens(const Checkpoint& checkpoint, const ModelOptions& options,
                                          const Backend& backend, const MemoryBudget& budget);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_MODELS_MEMORY_PLAN_H_
