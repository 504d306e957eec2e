// Which codec a checkpoint's linear sites are stored in.
#ifndef ULTRASKETCH_ENGINE_MODELS_CHECKPOINT_CODEC_H_
#define ULTRASKETCH_ENGINE_MODELS_CHECKPOINT_CODEC_H_

#include <string>

#include "absl/status/statusor.h"

#include "engine/format/checkpoint.h"

namespace ultrasketch {

// "dense", or what its quantization_config names. DATA_LOSS when that is no codec's name.
absl::StatusOr<std::string> CheckpointCodec(const Checkpoint& checkpoint);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_MODELS_CHECKPOINT_CODEC_H_
