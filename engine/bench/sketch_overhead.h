// What a model's compression does to the time of its steps, measured on the device that serves it.
#ifndef ULTRASKETCH_ENGINE_BENCH_SKETCH_OVERHEAD_H_
#define ULTRASKETCH_ENGINE_BENCH_SKETCH_OVERHEAD_H_

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "engine/backends/backend.h"
#include "engine/format/checkpoint.h"
#include "engine/kv/cache_layout.h"

namespace ultrasketch {

// The time of a step of the model over that of the same step with uncompressed layers: below 1 the
// compressed model is faster. The layers' matrices are random BF16 there; embedding, attention,
// head and all shapes are the model's own.
struct SketchOverhead {
  double prefill = 0;  // a prompt
  double decode = 0;   // the next token of one sequence
};

struct SketchOverheadOptions {
  // A prompt is of at most this many tokens, and of fewer where its step would take longer than
  // 50 ms; it is also what a decoding sequence has in the cache.
  int64_t prompt_tokens = 256;
  // Both kinds of layers are as many as the model has, or as few as have this many bytes
  // uncompressed: more than the caches of processors and cards hold. The time of the rest is then
  // reckoned from theirs.
  int64_t dense_bytes = int64_t{512} << 20;
  // How keys and values are kept, with layers of both kinds.
  KvCacheType kv_cache_type = KvCacheType::kFp16;
  // Runs a step, which takes the device for itself. An error ends the measurement.
  std::function<absl::Status(absl::FunctionRef<absl::Status()> step)> run;
  // Asked now and then: whether to end with CANCELLED.
  std::function<bool()> is_cancelled = [] { return false; };
};

// Bytes of the device that the measurement takes, beside the workspace.
int64_t SketchOverheadBytes(const Checkpoint& checkpoint, const Backend& backend,
                            const SketchOverheadOptions& options);

// Takes about two seconds of steps at most, none of them long. Weights are loaded anew from the
// checkpoint, so that whoever serves it goes on, and freed at the end. Steps run on `backend`,
// which nobody else may use meanwhile. Errors are those of loading and of steps;
// FAILED_PRECONDITION when the layers are not compressed.
absl::StatusOr<SketchOverhead> MeasureSketchOverhead(const Checkpoint& checkpoint, Backend& backend,
                                                     const SketchOverheadOptions& options);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BENCH_SKETCH_OVERHEAD_H_
