// A linear site packed for multiplication on a CPU: what a codec's CPU kernels implement.
#ifndef ULTRASKETCH_ENGINE_CODECS_CPU_LINEAR_H_
#define ULTRASKETCH_ENGINE_CODECS_CPU_LINEAR_H_

#include <cstdint>

#include "engine/base/thread_pool.h"

namespace ultrasketch {

// y = W' x in two stages, so that the first can be fused into whatever produces x:
//   PrepareInput: the codec's sketch of one token's input (fold: bucket sums), computed once;
//   Multiply:     the product of the prepared inputs of many tokens.
//
// Immutable after construction; both methods are safe to call from several threads, except that
// Multiply itself runs loops on `pool`.
//
// Reproducibility: each output value is summed in an order that does not depend on num_tokens, on
// the other tokens or on the number of threads. A token's result is the same to the bit in every
// batch.
class CpuLinear {
 public:
  virtual ~CpuLinear() = default;

  virtual int64_t rows() const = 0;
  virtual int64_t cols() const = 0;

  // Floats that one prepared input takes; what is in them (dense: the input) is the codec's.
  virtual int64_t prepared_width() const = 0;

  // x [cols] to prepared [prepared_width]. May run in place when `prepared == x` and
  // prepared_width() == cols().
  virtual void PrepareInput(const float* x, float* prepared) const = 0;

  // y[t][r] = (W' x_t)[r], or y[t][r] += it when `accumulate`, for t < num_tokens. `prepared` has a
  // row stride of prepared_width() floats, y one of rows(). Biases are the caller's.
  virtual void Multiply(const float* prepared, int64_t num_tokens, bool accumulate, float* y,
                        ThreadPool& pool) const = 0;

  // Bytes of memory that the weights take now, in mapped files or allocated here: of a file the
  // pages that this process has read.
  virtual int64_t resident_bytes() const = 0;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_CODECS_CPU_LINEAR_H_
