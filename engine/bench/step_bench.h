// Times whole steps of a model of random weights, compressed beside uncompressed, on any device.
#ifndef ULTRASKETCH_ENGINE_BENCH_STEP_BENCH_H_
#define ULTRASKETCH_ENGINE_BENCH_STEP_BENCH_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

#include "engine/kv/cache_layout.h"

namespace ultrasketch {

// `batch` sequences of `num_cached` tokens, `num_new` more each.
struct StepShape {
  std::string name;
  int64_t batch = 1;
  int64_t num_cached = 0;
  int64_t num_new = 1;
};

// Decoding steps of each of `batches` sequences whose newest token is the `context`-th, named
// decode_N, and a prompt of `prompt` tokens, prefill_N, unless that is 0.
std::vector<StepShape> StepShapes(const std::vector<int64_t>& batches, int64_t context,
                                  int64_t prompt);

struct StepBenchOptions {
  std::string device = "auto";
  std::string preset;            // model_presets.h
  int num_layers = 0;            // 0: all that the preset has; fewer make a quicker run
  std::string codec = "fold";    // or "absmaxmin"
  double bits_per_weight = 0.5;  // without scales; as in kernel_bench.h
  // Embedding and head of the compressed model: "dense", "int8", "int4". Those of the uncompressed
  // one are bfloat16.
  std::string table = "int8";
  KvCacheType kv_cache_type = KvCacheType::kFp16;  // of both models
  std::vector<StepShape> shapes = StepShapes({1, 8, 64}, 512, 2048);
  double seconds = 0.5;                           // for each measurement, at least
  std::function<void(double fraction)> progress;  // may be empty
  const std::atomic<bool>* cancelled = nullptr;
};

// Medians of the time from before a step's first call to after its last result, by the host's
// clock. On a CUDA device repeated steps are graphs.
struct StepMeasurement {
  StepShape shape;
  double seconds = 0;
  double dense_seconds = 0;  // with the engine's own products of uncompressed weights

  // Reckoned: a dense step without the products of its layers, plus the time of cublasLt's bfloat16
  // products as kernel_bench.h measures them. 0 when they could not be, or on a CPU.
  double dense_cublas_seconds = 0;
};

struct StepBenchResult {
  std::string device;
  std::string cublas_error;  // why there is no dense_cublas_seconds on a CUDA device, or ""
  int num_layers = 0;
  int64_t weight_bytes = 0;  // of the linear sites, resident
  int64_t dense_weight_bytes = 0;
  std::vector<StepMeasurement> measurements;
};

// INVALID_ARGUMENT for an unknown preset, codec or table; CANCELLED; what the device says.
absl::StatusOr<StepBenchResult> MeasureSteps(const StepBenchOptions& options);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BENCH_STEP_BENCH_H_
