// A training as a file: what it takes to go on exactly.
#ifndef ULTRASKETCH_ENGINE_FINETUNE_TRAINING_STATE_H_
#define ULTRASKETCH_ENGINE_FINETUNE_TRAINING_STATE_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

#include "engine/base/thread_pool.h"
#include "engine/finetune/parameter_store.h"

namespace ultrasketch {

// Beside the parameters.
struct TrainingState {
  int64_t step = 0;  // taken
  double seconds = 0;
  double perplexity_teacher = 0;
  double perplexity_before = 0;
  double perplexity_last = 0;
  double best_perplexity = 0;  // 0: none yet
  int64_t best_step = 0;
  int64_t evaluated_step = 0;  // of perplexity_last
  double smoothed_loss = 0;    // 0: none yet
  double least_smoothed_loss = 0;
  // Sums since the last record of the log, and over how many steps.
  double log_sums[3] = {0, 0, 0};
  int64_t log_steps = 0;
};

// Writes parameters, the optimizer's moments and `state` atomically. `settings` is what a run that
// goes on must have in common with this one.
absl::Status SaveTraining(const std::string& path, const ParameterStore& parameters,
                          const TrainingState& state, const nlohmann::json& settings);

// Reads it back. FAILED_PRECONDITION when there is no such file, or, naming the difference, when
// the settings are others; DATA_LOSS when it is damaged or belongs to other parameters.
absl::StatusOr<TrainingState> LoadTraining(const std::string& path, const nlohmann::json& settings,
                                           ParameterStore& parameters, ThreadPool& pool);

// The parameters alone: the best so far.
absl::Status SaveParameters(const std::string& path, const ParameterStore& parameters);
absl::Status LoadParameters(const std::string& path, ParameterStore& parameters, ThreadPool& pool);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_FINETUNE_TRAINING_STATE_H_
