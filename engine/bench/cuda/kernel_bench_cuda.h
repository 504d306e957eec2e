// What the plug-in of the measurements does.
#ifndef ULTRASKETCH_ENGINE_BENCH_CUDA_KERNEL_BENCH_CUDA_H_
#define ULTRASKETCH_ENGINE_BENCH_CUDA_KERNEL_BENCH_CUDA_H_

#include "absl/status/statusor.h"

#include "engine/bench/kernel_bench.h"

namespace ultrasketch {

inline constexpr const char* kCudaBenchFile = "libultrasketch_cuda_bench.so";

// Exported by the plug-in, beside the version (cuda_plugin.h). Sets `*result`.
inline constexpr const char* kCudaBenchKernelsSymbol = "ultrasketch_cuda_bench_kernels";
using CudaBenchKernelsFunction = void (*)(int ordinal, const KernelBenchOptions& options,
                                          absl::StatusOr<KernelBenchResult>* result);

namespace cuda {

absl::StatusOr<KernelBenchResult> MeasureKernels(int ordinal, const KernelBenchOptions& options);

}  // namespace cuda
}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BENCH_CUDA_KERNEL_BENCH_CUDA_H_
