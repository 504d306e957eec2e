#include <optional>

#include "absl/strings/str_cat.h"

#include "engine/backends/backend.h"
#include "engine/backends/cpu/cpu_backend.h"
#include "engine/backends/cuda/cuda_plugin.h"
#include "engine/base/instruction_set.h"
#include "engine/base/status.h"

namespace ultrasketch {
namespace {

// A device is shared with a backend of its own.
absl::Status CheckBeside(std::string_view device, const BackendOptions& options) {
  if (options.beside == nullptr || options.beside->name() == device) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("beside: expected a backend of ", A(device),
                                                 ", found one of ", A(options.beside->name())));
}

absl::StatusOr<std::shared_ptr<Backend>> CreateCpu(const BackendOptions& options) {
  US_RETURN_IF_ERROR(CheckBeside("cpu", options));
  return CreateCpuBackend(options);
}

absl::StatusOr<std::shared_ptr<Backend>> CreateCuda(int ordinal, const BackendOptions& options) {
  US_RETURN_IF_ERROR(CheckBeside(absl::StrCat("cuda:", ordinal), options));
  return CreateCudaBackendFromPlugin(ordinal, options);
}

}  // namespace

absl::StatusOr<std::shared_ptr<Backend>> CreateBackend(std::string_view device,
                                                       const BackendOptions& options) {
  US_RETURN_IF_ERROR(CheckInstructionSet());
  if (device == "auto" && options.beside != nullptr) device = options.beside->name();
  if (device == "cpu") return CreateCpu(options);
  if (device == "auto") {
    auto backend = CreateCuda(0, options);
    // No device, or none that this build can use. One that is there but full is an error: a model
    // would be served at a fraction of the speed, and nobody told.
    if (absl::IsUnavailable(backend.status())) return CreateCpu(options);
    return backend;
  }
  if (const std::optional<int> ordinal = CudaOrdinal(device); ordinal.has_value()) {
    auto backend = CreateCuda(*ordinal, options);
    if (!backend.ok()) {
      return Annotate(backend.status(), absl::StrCat("device ", Quoted(device)));
    }
    return backend;
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "device ", Quoted(device), ": expected \"auto\", \"cpu\", \"cuda\" or \"cuda:N\""));
}

}  // namespace ultrasketch
