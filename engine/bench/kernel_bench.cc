#include "engine/bench/kernel_bench.h"

#include <dlfcn.h>

#include "engine/backends/cuda/cuda_plugin.h"
#include "engine/base/status.h"
#include "engine/bench/cuda/kernel_bench_cuda.h"

namespace ultrasketch {

absl::StatusOr<KernelBenchResult> MeasureCudaKernels(int ordinal,
                                                     const KernelBenchOptions& options) {
  US_RETURN_IF_ERROR(ProbeCudaDevice(ordinal));
  US_ASSIGN_OR_RETURN(void* const plugin, OpenCudaPlugin(kCudaBenchFile, US_CUDA_BENCH_VERSION));
  const auto measure =
      reinterpret_cast<CudaBenchKernelsFunction>(dlsym(plugin, kCudaBenchKernelsSymbol));
  if (measure == nullptr) return absl::UnavailableError("the CUDA plug-in measures no kernels");
  absl::StatusOr<KernelBenchResult> result = absl::InternalError("not measured");
  measure(ordinal, options, &result);
  return result;
}

}  // namespace ultrasketch
