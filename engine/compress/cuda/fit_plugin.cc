#include "engine/compress/cuda/cuda_fit_device.h"

#define US_EXPORT extern "C" __attribute__((visibility("default")))

// As kCudaPluginVersionSymbol (cuda_plugin.h) has it.
US_EXPORT const char* ultrasketch_cuda_plugin_version() { return US_CUDA_COMPRESS_VERSION; }

US_EXPORT void ultrasketch_cuda_compress_create(
    int ordinal, const ultrasketch::ParallelLoop& loop,
    absl::StatusOr<std::unique_ptr<ultrasketch::FitDevice>>* result) {
  *result = ultrasketch::cuda::CreateCudaFitDevice(ordinal, loop);
}
