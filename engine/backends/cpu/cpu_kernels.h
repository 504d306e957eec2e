// The operations of a step other than linear products, one implementation per instruction set. Pure
// functions on rows of floats; loops over tokens and threads are the backend's.
#ifndef ULTRASKETCH_ENGINE_BACKENDS_CPU_CPU_KERNELS_H_
#define ULTRASKETCH_ENGINE_BACKENDS_CPU_CPU_KERNELS_H_

#include <cstdint>

#include "engine/kv/int4_levels.h"

namespace ultrasketch {

// Keys are attended to in chunks of this many positions, counted from 0: a query's result does not
// depend on how the tokens of its sequence are spread over steps.
inline constexpr int64_t kAttentionChunk = 256;

// Slots of a cache block that are computed at once: block sizes are a multiple of it.
inline constexpr int kAttentionLanes = 16;

// Some queries that attend to the same head of the same sequence.
//
// `cache` is the layer's first byte; block b and head h begin at (b * num_kv_heads + h) *
// block_size * token_bytes, with their keys, transposed, so that the scores of 16 keys are one
// vector, and their values after them:
//
//   fp32, fp16   keys [head_dim][block_size], values [block_size][head_dim]
//   int8         the same in bytes; then the scales of keys and of values, each [block_size]
//                bfloat16
//   int4         keys [head_dim / 2][block_size], values [block_size][head_dim / 2] in bytes of two
//                dimensions, the first in the lower half; then the scales of keys and of values,
//                each [groups of 32 dimensions][block_size] bfloat16. Queries and outputs are
//                rotated as they are (int4_row.h).
struct AttentionTile {
  const uint8_t* cache;
  const int32_t* blocks;  // of the sequence
  int64_t num_kv_heads;
  int64_t kv_head;
  int64_t block_size;
  int64_t head_dim;
  float scale;

  int64_t num_queries;          // at most kMaxQueries
  const float* const* queries;  // each [head_dim]
  const int64_t* num_keys;      // positions [0, num_keys[q]) are visible; ascending
  float* const* outputs;        // each [head_dim]

  static constexpr int64_t kMaxQueries = 16;
};

// Of a token's key and value of one head.
inline constexpr int64_t Fp32TokenBytes(int64_t head_dim) { return 2 * 4 * head_dim; }
inline constexpr int64_t Fp16TokenBytes(int64_t head_dim) { return 2 * 2 * head_dim; }
inline constexpr int64_t Int8TokenBytes(int64_t head_dim) { return 2 * (head_dim + 2); }
// Of even head_dim.
inline constexpr int64_t Int4TokenBytes(int64_t head_dim) {
  return 2 * (head_dim / 2 + 2 * ((head_dim + kInt4Group - 1) / kInt4Group));
}

struct CpuKernels {
  const char* name;

  // output[i] = x[i] / sqrt(mean(x^2) + epsilon) * weight[i]
  void (*rms_norm)(const float* x, const float* weight, int64_t size, float epsilon, float* output);

  // output[i] = gate[i] / (1 + e^-gate[i]) * up[i]
  void (*swiglu)(const float* gate, const float* up, int64_t size, float* output);

  // x[i] += y[i]
  void (*add)(const float* y, int64_t size, float* x);

  // outputs = softmax(scale * q . k) v, by an online softmax over chunks of keys, over a cache of
  // each type. `scores` is scratch of kMaxQueries * kAttentionChunk floats. The same bits on every
  // instruction set.
  using AttendFunction = void(const AttentionTile& tile, float* scores);
  AttendFunction* attend_fp16;
  AttendFunction* attend_int8;
  AttendFunction* attend_int4;
  AttendFunction* attend_fp32;
};

// The fastest that this processor can run.
const CpuKernels& GetCpuKernels();

// Those of a given instruction set; null when this processor cannot run it.
const CpuKernels* FindCpuKernels(const char* name);

extern const CpuKernels kAvx512CpuKernels;
extern const CpuKernels kAvx2CpuKernels;
extern const CpuKernels kPortableCpuKernels;

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BACKENDS_CPU_CPU_KERNELS_H_
