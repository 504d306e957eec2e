#include <optional>

#include "absl/strings/str_cat.h"

#include "engine/backends/backend.h"
#include "engine/backends/cpu/cpu_backend.h"
#include "engine/backends/cuda/cuda_plugin.h"
#include "engine/base/status.h"

namespace ultrasketch {
absl::StatusOr<std::shared_ptr<Backend>> CreateBackend(std::string_view device,
                                                       const BackendOptions& options) {
  if (device == "cpu") return CreateCpuBackend(options);
  if (device == "auto") {
    auto backend = CreateCudaBackendFromPlugin(0, options);
    // No device, or none that this build can use. One that is there but full is an error: a model
    // would be served at a fraction of the speed, and nobody told.
    if (absl::IsUnavailable(backend.status())) return CreateCpuBackend(options);
    return backend;
  }
  if (const std::optional<int> ordinal = CudaOrdinal(device); ordinal.has_value()) {
    auto backend = CreateCudaBackendFromPlugin(*ordinal, options);
    if (!backend.ok()) {
      return Annotate(backend.status(), absl::StrCat("device ", Quoted(device)));
    }
    return backend;
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "device ", Quoted(device), ": expected \"auto\", \"cpu\", \"cuda\" or \"cuda:N\""));
}

}  // namespace ultrasketch
