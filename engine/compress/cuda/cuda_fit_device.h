// A fit on a CUDA device.
#ifndef ULTRASKETCH_ENGINE_COMPRESS_CUDA_CUDA_FIT_DEVICE_H_
#define ULTRASKETCH_ENGINE_COMPRESS_CUDA_CUDA_FIT_DEVICE_H_

#include <memory>

#include "absl/status/statusor.h"

#include "engine/compress/fit_device.h"

namespace ultrasketch::cuda {

// UNAVAILABLE saying why when the device cannot be used.
absl::StatusOr<std::unique_ptr<FitDevice>> CreateCudaFitDevice(int ordinal,
                                                               const ParallelLoop& loop);

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_COMPRESS_CUDA_CUDA_FIT_DEVICE_H_
