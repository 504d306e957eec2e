// Checkpoints of random weights in the shapes of real models.
#ifndef ULTRASKETCH_ENGINE_BENCH_SYNTHETIC_CHECKPOINT_H_
#define ULTRASKETCH_ENGINE_BENCH_SYNTHETIC_CHECKPOINT_H_

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace ultrasketch {

struct SyntheticOptions {
  uint64_t seed = 0;
  // A folder with the tokenizer.json to copy; "" for none.
  std::string tokenizer_folder;
  // Layers in a shard; the embedding, the last norm and an untied head have one of their own.
  int layers_per_shard = 4;
};

// Writes a sharded BF16 checkpoint of a preset (model_presets.h) to `folder`, which must not exist.
// Weights are normally distributed, of deviations that keep activations near one. Needs little
// memory whatever the model's size. Nothing is left behind on failure.
absl::Status WriteSyntheticCheckpoint(std::string_view preset, const std::string& folder,
                                      const SyntheticOptions& options);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BENCH_SYNTHETIC_CHECKPOINT_H_
