// Times the products of compressed linear sites on a device, beside those of uncompressed ones.
#ifndef ULTRASKETCH_ENGINE_BENCH_KERNEL_BENCH_H_
#define ULTRASKETCH_ENGINE_BENCH_KERNEL_BENCH_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace ultrasketch {

struct KernelShape {
  std::string site;
  int64_t rows = 0;
  int64_t cols = 0;
};

struct KernelBenchOptions {
  std::string codec = "fold";  // or "absmaxmin"
  // Of a site's matrix without scales. fold: 1 / bits columns share a bucket, so 1 over a whole
  // number. absmaxmin: three hash rows of two-bit buckets, the most that it pays for.
  double bits_per_weight = 0.5;
  std::vector<KernelShape> shapes;
  std::vector<int64_t> token_counts = {1, 4, 16, 64, 256, 2048};
  double seconds = 0.05;  // for each measurement, at least
  // The sum so far over that of all; may be empty.
  std::function<void(double fraction)> progress;
  const std::atomic<bool>* cancelled = nullptr;
};

// Microseconds are medians by CUDA events, of a launch in a graph of launches whose weights rotate
// through more memory than the second-level cache.
struct KernelMeasurement {
  std::string site;
  int64_t num_tokens = 0;
  double microseconds = 0;
  double dense_microseconds = 0;         // cublasLt, bfloat16
  double engine_dense_microseconds = 0;  // the engine's own product of uncompressed weights
  // The same sketch with its whole matrix decoded first: an operator at a time, as frameworks do,
  // and by one kernel; each followed by the dense product. Of an AbsMaxMin sketch of the same bits.
  double naive_microseconds = 0;
  double decode_microseconds = 0;
  // Weights, inputs and outputs, each once.
  double bytes = 0;
  // Of the dense product: two for each weight and token.
  double operations = 0;
};

struct KernelBenchResult {
  std::string device;
  // The two ceilings, measured: a copy within the device, bytes read and bytes written, and a
  // bfloat16 product of 8192 x 8192 x 8192.
  double bytes_per_second = 0;
  double operations_per_second = 0;
  std::vector<KernelMeasurement> measurements;
};

// The sites of a layer of a preset (model_presets.h). INVALID_ARGUMENT for an unknown one.
absl::StatusOr<std::vector<KernelShape>> PresetShapes(std::string_view preset);

// On CUDA device `ordinal`, by the plug-in beside the executable. UNAVAILABLE saying why when there
// is no device or no plug-in; INVALID_ARGUMENT for an unknown codec; CANCELLED.
absl::StatusOr<KernelBenchResult> MeasureCudaKernels(int ordinal,
                                                     const KernelBenchOptions& options);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BENCH_KERNEL_BENCH_H_
