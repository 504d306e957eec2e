#include "engine/compress/fit_device.h"

#include <dlfcn.h>

#include <optional>

#include "absl/strings/str_cat.h"

#include "engine/backends/cuda/cuda_plugin.h"
#include "engine/base/status.h"
#include "engine/compress/cpu_fit_device.h"

namespace ultrasketch {
namespace {

absl::StatusOr<std::unique_ptr<FitDevice>> CreateCuda(int ordinal, ThreadPool& pool) {
  US_RETURN_IF_ERROR(ProbeCudaDevice(ordinal));
  static const absl::StatusOr<void*> plugin =
      OpenCudaPlugin(kCudaFitPluginFile, US_CUDA_COMPRESS_VERSION);
  US_RETURN_IF_ERROR(plugin.status());
  const auto create = reinterpret_cast<CudaFitCreateFunction>(dlsym(*plugin, kCudaFitCreateSymbol));
  if (create == nullptr) {
    const char* const message = dlerror();
    return absl::UnavailableError(message != nullptr ? message : "unknown error");
  }
  absl::StatusOr<std::unique_ptr<FitDevice>> device = absl::InternalError("not created");
  const ParallelLoop loop = [&pool](int64_t num_items, int64_t grain,
                                    absl::FunctionRef<void(int64_t, int64_t, int)> body) {
    pool.ParallelFor(num_items, grain, body);
  };
  create(ordinal, loop, &device);
  return device;
}

}  // namespace

absl::StatusOr<std::unique_ptr<FitDevice>> CreateFitDevice(std::string_view device,
                                                           ThreadPool& pool) {
  if (device == "cpu") return MakeCpuFitDevice(pool);
  if (device == "auto") {
    auto created = CreateCuda(0, pool);
    // As in CreateBackend: a device that is there but cannot be used is an error.
    if (absl::IsUnavailable(created.status())) return MakeCpuFitDevice(pool);
    return created;
  }
  if (const std::optional<int> ordinal = CudaOrdinal(device); ordinal.has_value()) {
    auto created = CreateCuda(*ordinal, pool);
    if (!created.ok()) {
      return Annotate(created.status(), absl::StrCat("device ", Quoted(device)));
    }
    return created;
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "device ", Quoted(device), ": expected \"auto\", \"cpu\", \"cuda\" or \"cuda:N\""));
}

}  // namespace ultrasketch
