// Where a training runs.
#ifndef ULTRASKETCH_ENGINE_FINETUNE_TRAINING_DEVICE_H_
#define ULTRASKETCH_ENGINE_FINETUNE_TRAINING_DEVICE_H_

#include <exception>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "engine/finetune/decoder.h"

namespace ultrasketch {

struct TrainingDevice {
  ComputeOptions compute;
  std::string description;  // "cpu", or a GPU's name
};

// `device` is "auto" (CUDA where there is one), "cpu", "cuda" (that of the process's rank on its
// machine) or "cuda:N"; `precision` "auto" (bf16 on CUDA, else fp32), "bf16" or "fp32". What
// follows on this thread runs on a CUDA stream of its own. INVALID_ARGUMENT for other words;
// UNAVAILABLE when there is no such device or this LibTorch is without CUDA.
absl::StatusOr<TrainingDevice> ChooseTrainingDevice(std::string_view device,
                                                    std::string_view precision, int local_rank);

// RESOURCE_EXHAUSTED for LibTorch's out-of-memory errors, else INTERNAL, with its first line.
absl::Status TorchStatus(const std::exception& error);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_FINETUNE_TRAINING_DEVICE_H_
