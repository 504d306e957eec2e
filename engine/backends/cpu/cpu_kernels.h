// The operations of a step other than linear products, one implementation per instruction set. Pure
// functions on rows of floats; loops over tokens and threads are the backend's.
#ifndef ULTRASKETCH_ENGINE_BACKENDS_CPU_CPU_KERNELS_H_
#define ULTRASKETCH_ENGINE_BACKENDS_CPU_CPU_KERNELS_H_

#include <cstdint>

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
//   float   keys [head_dim][block_size], values [block_size][head_dim]
//   int8    the same in bytes; then the scales of keys and of values, each [block_size] bfloat16
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

inline constexpr int64_t FloatTokenBytes(int64_t head_dim) { return 2 * 4 * head_dim; }
inline constexpr int64_t Int8TokenBytes(int64_t head_dim) { return 2 * head_dim + 2 * 2; }

struct CpuKernels {
  const char* name;

  // output[i] = x[i] / sqrt(mean(x^2) + epsilon) * weight[i]
  void (*rms_norm)(const float* x, const float* weight, int64_t size, float epsilon, float* output);

  // output[i] = gate[i] / (1 + e^-gate[i]) * up[i]
  void (*swiglu)(const float* gate, const float* up, int64_t size, float* output);

  // x[i] += y[i]
  void (*add)(const float* y, int64_t size, float* x);

  // outputs = softmax(scale * q . k) v, by an online softmax over chunks of keys. `scores` is
  // scratch of kMaxQueries * kAttentionChunk floats.
  void (*attend)(const AttentionTile& tile, float* scores);
  // The same of a cache of bytes.
  void (*attend_int8)(const AttentionTile& tile, float* scores);
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
