#include "engine/backends/cuda/cuda_plugin.h"
#include "engine/bench/cuda/kernel_bench_cuda.h"

extern "C" __attribute__((visibility("default"))) const char* ultrasketch_cuda_plugin_version() {
  return US_CUDA_BENCH_VERSION;
}

extern "C" __attribute__((visibility("default"))) void ultrasketch_cuda_bench_kernels(
    int ordinal, const ultrasketch::KernelBenchOptions& options,
    absl::StatusOr<ultrasketch::KernelBenchResult>* result) {
  *result = ultrasketch::cuda::MeasureKernels(ordinal, options);
}
