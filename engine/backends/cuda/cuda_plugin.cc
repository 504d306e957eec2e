#include "engine/backends/cuda/cuda_plugin.h"

#include "engine/backends/cuda/cuda_backend.h"

#define US_EXPORT extern "C" __attribute__((visibility("default")))

US_EXPORT const char* ultrasketch_cuda_plugin_version() { return ULTRASKETCH_PLUGIN_VERSION; }

US_EXPORT void ultrasketch_cuda_plugin_create(
    int ordinal, const ultrasketch::BackendOptions& options,
    absl::StatusOr<std::shared_ptr<ultrasketch::Backend>>* result) {
  *result = ultrasketch::CreateCudaBackend(ordinal, options);
}
