// Times the products of compressed matrices on this machine's processor, beside the engine's own of
// uncompressed ones.
#ifndef ULTRASKETCH_ENGINE_BENCH_KERNEL_BENCH_CPU_H_
#define ULTRASKETCH_ENGINE_BENCH_KERNEL_BENCH_CPU_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

#include "engine/bench/kernel_bench.h"

namespace ultrasketch {

// Of preparing the inputs of num_tokens tokens and multiplying with them, in matrices that rotate
// through more memory than the caches hold.
struct CpuKernelMeasurement {
  std::string site;
  int64_t num_tokens = 0;
  double microseconds = 0;        // median
  double least_microseconds = 0;  // what remains where other programs disturb
  double dense_microseconds = 0;  // of bfloat16 weights, the same two
  double least_dense_microseconds = 0;
  double bytes = 0;  // of the compressed weights
};

struct CpuKernelBenchResult {
  std::string device;
  int num_threads = 0;
  double bytes_per_second = 0;  // read from memory by all threads, measured
  std::vector<CpuKernelMeasurement> measurements;
};

// options.codec is "fold", "absmaxmin", or "int8" or "int4": the output head of a preset rather
// than the sites of a layer. `num_threads` is 0 for all. INVALID_ARGUMENT for another codec;
// CANCELLED.
absl::StatusOr<CpuKernelBenchResult> MeasureCpuKernels(const KernelBenchOptions& options,
                                                       int num_threads);

// The output head of a preset. INVALID_ARGUMENT for an unknown one.
absl::StatusOr<KernelShape> PresetHeadShape(std::string_view preset);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BENCH_KERNEL_BENCH_CPU_H_
