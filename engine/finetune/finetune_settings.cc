#include "engine/finetune/finetune_settings.h"

#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

#include "engine/base/status.h"
#include "engine/format/checksum.h"
#include "engine/format/safetensors.h"

namespace ultrasketch {
namespace {

// Equal for equal tensors.
std::string ContentKey(const Checkpoint& checkpoint, ThreadPool& pool) {
  std::vector<NamedTensor> tensors;
  for (const std::string& name : checkpoint.tensor_names()) {
    tensors.push_back({name, *checkpoint.Find(name)});
  }
  std::string all;
  for (const uint64_t checksum : TensorChecksums(tensors, pool)) {
    absl::StrAppend(&all, ChecksumString(checksum));
  }
  return ChecksumString(Crc64(all.data(), static_cast<int64_t>(all.size())));
}

}  // namespace

absl::Status CheckFinetuneOptions(const FinetuneOptions& options) {
  const auto positive = [](const char* name, double value, double least) {
    return value >= least && std::isfinite(value)
               ? absl::OkStatus()
               : absl::InvalidArgumentError(
                     absl::StrCat(name, ": expected at least ", least, ", found ", value));
  };
  US_RETURN_IF_ERROR(positive("steps", static_cast<double>(options.num_steps), 1));
  US_RETURN_IF_ERROR(positive("batch", static_cast<double>(options.batch_windows), 1));
  US_RETURN_IF_ERROR(positive("context", static_cast<double>(options.window_tokens), 2));
  US_RETURN_IF_ERROR(positive("accumulate", static_cast<double>(options.accumulation), 1));
  US_RETURN_IF_ERROR(positive("log-every", static_cast<double>(options.log_every), 1));
  US_RETURN_IF_ERROR(positive("eval-every", static_cast<double>(options.eval_every), 0));
  US_RETURN_IF_ERROR(positive("eval-max-tokens", static_cast<double>(options.eval_max_tokens), 2));
  US_RETURN_IF_ERROR(positive("warmup", static_cast<double>(options.warmup_steps), 0));
  US_RETURN_IF_ERROR(positive("lr", options.latent_learning_rate, 0));
  US_RETURN_IF_ERROR(positive("lr-other", options.learning_rate, 0));
  US_RETURN_IF_ERROR(positive("lr-embedding", options.table_learning_rate, 0));
  US_RETURN_IF_ERROR(positive("hidden-loss", options.hidden_loss, 0));
  US_RETURN_IF_ERROR(positive("checkpoint-every", options.checkpoint_seconds, 0));
  if (!(options.windows_share > 0 && options.windows_share < 1)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "windows-share: expected more than 0 and less than 1, found ", options.windows_share));
  }
  if (!(options.max_gradient_norm > 0)) {
    return absl::InvalidArgumentError("clip: expected more than 0");
  }
  return absl::OkStatus();
}

nlohmann::json FinetuneSettings(const FinetuneOptions& options, const Checkpoint& teacher,
                                const Checkpoint& student, const TrainingTexts& texts,
                                ThreadPool& pool) {
  return {{"teacher", ContentKey(teacher, pool)},
          {"student", ContentKey(student, pool)},
          {"text", texts.key()},
          {"windows-share", options.windows_share},
          {"steps", options.num_steps},
          {"batch", options.batch_windows},
          {"context", options.window_tokens},
          {"lr", options.latent_learning_rate},
          {"lr-other", options.learning_rate},
          {"lr-embedding", options.table_learning_rate},
          {"train-embedding", options.train_tables},
          {"warmup", options.warmup_steps},
          {"clip", options.max_gradient_norm},
          {"hidden-loss", options.hidden_loss},
          {"seed", options.seed},
          {"from", options.start_from_teacher ? "teacher" : "student"},
          {"gradient", options.gradient_to_all ? "all" : "chosen"},
          {"held-out", texts.num_held_out()}};
}

}  // namespace ultrasketch
