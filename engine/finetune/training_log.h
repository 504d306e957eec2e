// The record of a training: a JSON object a line, and curves of it.
#ifndef ULTRASKETCH_ENGINE_FINETUNE_TRAINING_LOG_H_
#define ULTRASKETCH_ENGINE_FINETUNE_TRAINING_LOG_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace ultrasketch {

struct TrainingRecord {
  int64_t step = 0;  // steps taken
  int64_t tokens = 0;
  double seconds = 0;            // of training
  double loss = 0;               // mean divergence since the record before, nats a token
  double hidden_loss = 0;        // likewise
  double gradient_norm = 0;      // likewise
  double learning_rate = 0;      // factor of all learning rates
  double tokens_per_second = 0;  // since the record before
};

struct EvaluationRecord {
  int64_t step = 0;
  int64_t tokens = 0;
  double perplexity = 0;
};

// "training.jsonl", "loss.svg" and "perplexity.svg" of a folder. Not thread-safe.
class TrainingLog {
 public:
  explicit TrainingLog(std::string folder) : folder_(std::move(folder)) {}

  // Begins anew, or goes on after the records up to `last_step` of an earlier run.
  absl::Status Begin();
  absl::Status Continue(int64_t last_step);

  absl::Status Add(const TrainingRecord& record);
  absl::Status Add(const EvaluationRecord& record);

  const std::vector<TrainingRecord>& training() const { return training_; }
  const std::vector<EvaluationRecord>& evaluations() const { return evaluations_; }

  // Replaces the curves.
  absl::Status WriteCurves() const;

 private:
  std::string path() const;
  absl::Status Append(const std::string& line) const;

  std::string folder_;
  std::vector<TrainingRecord> training_;
  std::vector<EvaluationRecord> evaluations_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_FINETUNE_TRAINING_LOG_H_
