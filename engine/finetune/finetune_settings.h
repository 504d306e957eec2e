// The options of a training: which make sense, and which a training that goes on must share.
#ifndef ULTRASKETCH_ENGINE_FINETUNE_FINETUNE_SETTINGS_H_
#define ULTRASKETCH_ENGINE_FINETUNE_FINETUNE_SETTINGS_H_

#include "absl/status/status.h"
#include "nlohmann/json.hpp"

#include "engine/base/thread_pool.h"
#include "engine/finetune/finetune.h"
#include "engine/finetune/training_texts.h"
#include "engine/format/checkpoint.h"

namespace ultrasketch {

// INVALID_ARGUMENT, naming the option, for a number out of its range.
absl::Status CheckFinetuneOptions(const FinetuneOptions& options);

// Everything that decides a training's losses: options, and the contents of models and texts.
nlohmann::json FinetuneSettings(const FinetuneOptions& options, const Checkpoint& teacher,
                                const Checkpoint& student, const TrainingTexts& texts,
                                ThreadPool& pool);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_FINETUNE_FINETUNE_SETTINGS_H_
