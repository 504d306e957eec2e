// The memory that a compression takes.
#ifndef ULTRASKETCH_ENGINE_COMPRESS_COMPRESSION_MEMORY_H_
#define ULTRASKETCH_ENGINE_COMPRESS_COMPRESSION_MEMORY_H_

#include <cstdint>

#include "engine/compress/compressor.h"
#include "engine/format/model_config.h"

namespace ultrasketch {

// Tokens of a calibration window: those asked for, or as many as the model takes.
int64_t CalibrationWindowTokens(const ModelConfig& config, const CompressOptions& options);

// Calibration windows that the model writes together: as many as a bounded cache holds, at least 1.
int64_t SampledWindowsAtOnce(const ModelConfig& config, const CompressOptions& options,
                             bool on_gpu);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_COMPRESS_COMPRESSION_MEMORY_H_
