// The step's operations, for the instruction set of the file that includes this.
#ifndef ULTRASKETCH_ENGINE_BACKENDS_CPU_CPU_KERNELS_IMPL_H_
#define ULTRASKETCH_ENGINE_BACKENDS_CPU_CPU_KERNELS_IMPL_H_

#include "engine/backends/cpu/attention_impl.h"
#include "engine/backends/cpu/cpu_kernels.h"
#include "engine/base/vector16.h"

namespace ultrasketch {
namespace {

void RmsNorm(const float* x, const float* weight, int64_t size, float epsilon, float* output) {
  Float16 squares = {};
  int64_t i = 0;
  for (; i + 16 <= size; i += 16) {
    const Float16 v = Load(x + i);
    squares += v * v;
  }
  if (i < size) {
    const Float16 v = LoadPartial(x + i, size - i);
    squares += v * v;
  }
  const float scale = 1.0f / __builtin_sqrtf(Sum(squares) / static_cast<float>(size) + epsilon);
  for (i = 0; i + 16 <= size; i += 16) Store(Load(x + i) * scale * Load(weight + i), output + i);
  for (; i < size; ++i) output[i] = x[i] * scale * weight[i];
}

void SwiGlu(const float* gate, const float* up, int64_t size, float* output) {
  int64_t i = 0;
  for (; i + 16 <= size; i += 16) {
    const Float16 g = Load(gate + i);
    Store(g / (1.0f + Exp(-g)) * Load(up + i), output + i);
  }
  if (i < size) {
    const Float16 g = LoadPartial(gate + i, size - i);
    StorePartial(g / (1.0f + Exp(-g)) * LoadPartial(up + i, size - i), size - i, output + i);
  }
}

void Add(const float* y, int64_t size, float* x) {
  for (int64_t i = 0; i < size; ++i) x[i] += y[i];
}

}  // namespace
}  // namespace ultrasketch

// Defines the table of kernels called `variable`.
#define US_DEFINE_CPU_KERNELS(variable, name)                   \
  namespace ultrasketch {                                       \
  const CpuKernels variable = {name,                            \
                               RmsNorm,                         \
                               SwiGlu,                          \
                               Add,                             \
                               Attend<FloatForm<F16Elements>>,  \
                               Attend<Int8Form>,                \
                               Attend<Int4Form>,                \
                               Attend<FloatForm<F32Elements>>}; \
  }

#endif  // ULTRASKETCH_ENGINE_BACKENDS_CPU_CPU_KERNELS_IMPL_H_
