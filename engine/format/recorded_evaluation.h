// What a compressed model's perplexity was when it was made: kept in its config.json, so that who
// serves the model can tell what it is worth.
#ifndef ULTRASKETCH_ENGINE_FORMAT_RECORDED_EVALUATION_H_
#define ULTRASKETCH_ENGINE_FORMAT_RECORDED_EVALUATION_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "engine/format/checkpoint.h"

namespace ultrasketch {

// The key of quantization_config that holds it. Not part of what the weights' metadata repeats.
inline constexpr char kEvaluationKey[] = "evaluation";

struct RecordedEvaluation {
  double perplexity = 0;        // of the compressed model
  double dense_perplexity = 0;  // of the model it was made from, on the same tokens
  int64_t tokens = 0;           // predicted
  int64_t context_tokens = 0;   // of a window
};

// Nothing where the model's maker recorded none. DATA_LOSS, naming the key, for anything else than
// finite perplexities of at least 1 and positive counts.
absl::StatusOr<std::optional<RecordedEvaluation>> ReadRecordedEvaluation(
    const Checkpoint& checkpoint);

// Writes it into the config.json of a compressed model's folder, in place of an earlier one; the
// file is the old one or the whole new one. INVALID_ARGUMENT when `evaluation` is nothing that
// ReadRecordedEvaluation would accept; FAILED_PRECONDITION when the model is not a compressed one.
absl::Status RecordEvaluation(const std::string& folder, const RecordedEvaluation& evaluation);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_FORMAT_RECORDED_EVALUATION_H_
