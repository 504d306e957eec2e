// The step's operations, for the instruction set of the file that includes this.
#ifndef ULTRASKETCH_ENGINE_BACKENDS_CPU_CPU_KERNELS_IMPL_H_
#define ULTRASKETCH_ENGINE_BACKENDS_CPU_CPU_KERNELS_IMPL_H_

#include "engine/backends/cpu/cpu_kernels.h"
#include "engine/base/vector16.h"

namespace ultrasketch {
namespace {

void RmsNorm(const float* x, const float* weight, int64_t size, float epsilon, float* output) {
  Float16 squares = {};
  int64_t i = 0;
  for (; i + 16 <= size; i += 16) {
    const Float16 v = Load(x + i);
    squares = MultiplyAdd(v, v, squares);
  }
  if (i < size) {
    const Float16 v = LoadPartial(x + i, size - i);
    squares = MultiplyAdd(v, v, squares);
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

constexpr int kQueriesAtOnce = 4;

// scores[q * kAttentionChunk + i] = scale * q . k[first + i] for the keys of one block's 16 lanes.
template <int kQueries>
void ScoreLanes(const AttentionTile& tile, int64_t first_query, const float* keys, float* scores) {
  Float16 sums[kQueries] = {};
  for (int64_t d = 0; d < tile.head_dim; ++d) {
    const Float16 k = Load(keys + d * tile.block_size);
#pragma GCC unroll 4
    for (int q = 0; q < kQueries; ++q) {
      sums[q] = MultiplyAdd(Float16(tile.queries[first_query + q][d]), k, sums[q]);
    }
  }
  for (int q = 0; q < kQueries; ++q) {
    Store(sums[q] * tile.scale, scores + (first_query + q) * kAttentionChunk);
  }
}

const float* BlockStart(const AttentionTile& tile, const float* base, int64_t position) {
  const int64_t block = tile.blocks[position / tile.block_size];
  return base + (block * tile.num_kv_heads + tile.kv_head) * tile.block_size * tile.head_dim;
}

// Scores of the positions [first, last) for all queries, whole vectors of lanes.
void ScoreChunk(const AttentionTile& tile, int64_t first, int64_t last, float* scores) {
  for (int64_t position = first; position < last; position += kAttentionLanes) {
    const float* keys = BlockStart(tile, tile.keys, position) + position % tile.block_size;
    float* out = scores + (position - first);
    int64_t query = 0;
    for (; query + kQueriesAtOnce <= tile.num_queries; query += kQueriesAtOnce) {
      ScoreLanes<kQueriesAtOnce>(tile, query, keys, out);
    }
    for (; query < tile.num_queries; ++query) ScoreLanes<1>(tile, query, keys, out);
  }
}

// output[0, 16 * kVectors) += sum over the chunk's positions of weight * value, in order.
template <int kVectors>
void WeighValues(const AttentionTile& tile, const float* weights, int64_t first, int64_t last,
                 int64_t offset, float* output) {
  Float16 sums[kVectors];
  for (int v = 0; v < kVectors; ++v) sums[v] = Load(output + offset + 16 * v);
  for (int64_t position = first; position < last;) {
    const int64_t slot = position % tile.block_size;
    const float* values = BlockStart(tile, tile.values, position) + slot * tile.head_dim + offset;
    int64_t count = tile.block_size - slot;
    if (count > last - position) count = last - position;
    for (int64_t i = 0; i < count; ++i) {
      const Float16 weight = weights[position - first + i];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        sums[v] = MultiplyAdd(weight, Load(values + i * tile.head_dim + 16 * v), sums[v]);
      }
    }
    position += count;
  }
  for (int v = 0; v < kVectors; ++v) Store(sums[v], output + offset + 16 * v);
}

void WeighAllValues(const AttentionTile& tile, const float* weights, int64_t first, int64_t last,
                    float* output) {
  int64_t offset = 0;
  for (; offset + 64 <= tile.head_dim; offset += 64) {
    WeighValues<4>(tile, weights, first, last, offset, output);
  }
  for (; offset + 16 <= tile.head_dim; offset += 16) {
    WeighValues<1>(tile, weights, first, last, offset, output);
  }
  for (; offset < tile.head_dim; ++offset) {
    for (int64_t position = first; position < last; ++position) {
      const float* values =
          BlockStart(tile, tile.values, position) + position % tile.block_size * tile.head_dim;
      output[offset] += weights[position - first] * values[offset];
    }
  }
}

void Attend(const AttentionTile& tile, float* scores) {
  float maximum[AttentionTile::kMaxQueries];
  float total[AttentionTile::kMaxQueries];
  for (int64_t query = 0; query < tile.num_queries; ++query) {
    maximum[query] = -__builtin_inff();
    total[query] = 0;
    for (int64_t d = 0; d < tile.head_dim; ++d) tile.outputs[query][d] = 0;
  }
  const int64_t num_keys = tile.num_keys[tile.num_queries - 1];
  for (int64_t first = 0; first < num_keys; first += kAttentionChunk) {
    const int64_t last = first + kAttentionChunk < num_keys ? first + kAttentionChunk : num_keys;
    ScoreChunk(tile, first, last, scores);
    for (int64_t query = 0; query < tile.num_queries; ++query) {
      const int64_t end = tile.num_keys[query] < last ? tile.num_keys[query] : last;
      if (end <= first) continue;
      float* row = scores + query * kAttentionChunk;
      const int64_t count = end - first;
      // Lanes past the visible keys hold whatever the cache held: they get no weight.
      const int64_t whole = (count + 15) / 16 * 16;
      for (int64_t i = count; i < whole; ++i) row[i] = -__builtin_inff();
      Float16 largest = Load(row);
      for (int64_t i = 16; i < whole; i += 16) {
        const Float16 s = Load(row + i);
        largest = Larger(s, largest);
      }
      const float chunk_maximum = Maximum(largest);
      const float new_maximum = chunk_maximum > maximum[query] ? chunk_maximum : maximum[query];
      if (new_maximum > maximum[query] && first > 0) {
        const float correction = Maximum(Exp(maximum[query] - new_maximum));
        total[query] *= correction;
        for (int64_t d = 0; d < tile.head_dim; ++d) tile.outputs[query][d] *= correction;
      }
      maximum[query] = new_maximum;
      Float16 sum = {};
      for (int64_t i = 0; i < whole; i += 16) {
        const Float16 weight = Exp(Load(row + i) - new_maximum);
        sum += weight;
        Store(weight, row + i);
      }
      total[query] += Sum(sum);
      WeighAllValues(tile, row, first, end, tile.outputs[query]);
    }
  }
  for (int64_t query = 0; query < tile.num_queries; ++query) {
    const float inverse = 1.0f / total[query];
    for (int64_t d = 0; d < tile.head_dim; ++d) tile.outputs[query][d] *= inverse;
  }
}

}  // namespace
}  // namespace ultrasketch

// Defines the table of kernels called `variable`.
#define US_DEFINE_CPU_KERNELS(variable, name)                       \
  namespace ultrasketch {                                           \
  const CpuKernels variable = {name, RmsNorm, SwiGlu, Add, Attend}; \
  }

#endif  // ULTRASKETCH_ENGINE_BACKENDS_CPU_CPU_KERNELS_IMPL_H_
