// Shapes of well-known models, for measurements that need no trained weights.
#ifndef ULTRASKETCH_ENGINE_BENCH_MODEL_PRESETS_H_
#define ULTRASKETCH_ENGINE_BENCH_MODEL_PRESETS_H_

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace ultrasketch {

// The config.json of a preset. INVALID_ARGUMENT listing the presets when there is none of that
// name.
absl::StatusOr<nlohmann::ordered_json> PresetConfig(std::string_view name);

std::vector<std::string> PresetNames();

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BENCH_MODEL_PRESETS_H_
