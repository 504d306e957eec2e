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

// What a cache of floats holds at one position: `Keys(d)` are dimension d of 16 keys from there on,
// `Values(i, d)` 16 dimensions of the i-th value from there on. KeyFactors and ValueFactor are what
// they are to be multiplied by.
class FloatCache {
 public:
  FloatCache(const AttentionTile& tile, int64_t position)
      : block_size_(tile.block_size), head_dim_(tile.head_dim) {
    const int64_t block = tile.blocks[position / block_size_];
    const int64_t slot = position % block_size_;
    const auto* const start =
        reinterpret_cast<const float*>(tile.cache + (block * tile.num_kv_heads + tile.kv_head) *
                                                        block_size_ * FloatTokenBytes(head_dim_));
    keys_ = start + slot;
    values_ = start + (block_size_ + slot) * head_dim_;
  }
  Float16 Keys(int64_t d) const { return Load(keys_ + d * block_size_); }
  Float16 KeyFactors(float scale) const { return scale; }
  Float16 Values(int64_t i, int64_t d) const { return Load(values_ + i * head_dim_ + d); }
  float Value(int64_t i, int64_t d) const { return values_[i * head_dim_ + d]; }
  float ValueFactor(int64_t /*i*/, float weight) const { return weight; }

 private:
  int64_t block_size_;
  int64_t head_dim_;
  const float* keys_;
  const float* values_;
};

// The same of a cache of bytes.
class Int8Cache {
 public:
  Int8Cache(const AttentionTile& tile, int64_t position)
      : block_size_(tile.block_size), head_dim_(tile.head_dim) {
    const int64_t block = tile.blocks[position / block_size_];
    const int64_t slot = position % block_size_;
    const auto* const start =
        reinterpret_cast<const int8_t*>(tile.cache + (block * tile.num_kv_heads + tile.kv_head) *
                                                         block_size_ * Int8TokenBytes(head_dim_));
    keys_ = start + slot;
    values_ = start + (block_size_ + slot) * head_dim_;
    key_scales_ = reinterpret_cast<const uint8_t*>(start + 2 * block_size_ * head_dim_) + 2 * slot;
  }
  Float16 Keys(int64_t d) const { return LoadBytes(keys_ + d * block_size_); }
  Float16 KeyFactors(float scale) const { return Bf16Elements::LoadAsFloat(key_scales_) * scale; }
  Float16 Values(int64_t i, int64_t d) const { return LoadBytes(values_ + i * head_dim_ + d); }
  float Value(int64_t i, int64_t d) const { return values_[i * head_dim_ + d]; }
  float ValueFactor(int64_t i, float weight) const {
    uint16_t bits;
    __builtin_memcpy(&bits, key_scales_ + 2 * (block_size_ + i), sizeof(bits));
    return weight * BitCast<float>(uint32_t{bits} << 16);
  }

 private:
  int64_t block_size_;
  int64_t head_dim_;
  const int8_t* keys_;
  const int8_t* values_;
  const uint8_t* key_scales_;  // those of values are after a block's
};

// scores[q * kAttentionChunk + i] = scale * q . k[first + i] for the keys of one block's 16 lanes.
template <int kQueries, typename Cache>
void ScoreLanes(const AttentionTile& tile, int64_t first_query, const Cache& cache, float* scores) {
  Float16 sums[kQueries] = {};
  for (int64_t d = 0; d < tile.head_dim; ++d) {
    const Float16 k = cache.Keys(d);
#pragma GCC unroll 4
    for (int q = 0; q < kQueries; ++q) {
      sums[q] = MultiplyAdd(Float16(tile.queries[first_query + q][d]), k, sums[q]);
    }
  }
  const Float16 factors = cache.KeyFactors(tile.scale);
  for (int q = 0; q < kQueries; ++q) {
    Store(sums[q] * factors, scores + (first_query + q) * kAttentionChunk);
  }
}

// Scores of the positions [first, last) for all queries, whole vectors of lanes.
template <typename Cache>
void ScoreChunk(const AttentionTile& tile, int64_t first, int64_t last, float* scores) {
  for (int64_t position = first; position < last; position += kAttentionLanes) {
    const Cache cache(tile, position);
    float* out = scores + (position - first);
    int64_t query = 0;
    for (; query + kQueriesAtOnce <= tile.num_queries; query += kQueriesAtOnce) {
      ScoreLanes<kQueriesAtOnce>(tile, query, cache, out);
    }
    for (; query < tile.num_queries; ++query) ScoreLanes<1>(tile, query, cache, out);
  }
}

// Calls `take(cache, count, weights)` for the chunk's positions, block by block.
template <typename Cache, typename Take>
void ForBlocks(const AttentionTile& tile, const float* weights, int64_t first, int64_t last,
               const Take& take) {
  for (int64_t position = first; position < last;) {
    int64_t count = tile.block_size - position % tile.block_size;
    if (count > last - position) count = last - position;
    take(Cache(tile, position), count, weights + (position - first));
    position += count;
  }
}

// output[0, 16 * kVectors) += sum over the chunk's positions of weight * value, in order.
template <int kVectors, typename Cache>
void WeighValues(const AttentionTile& tile, const float* weights, int64_t first, int64_t last,
                 int64_t offset, float* output) {
  Float16 sums[kVectors];
  for (int v = 0; v < kVectors; ++v) sums[v] = Load(output + offset + 16 * v);
  ForBlocks<Cache>(tile, weights, first, last,
                   [&](const Cache& cache, int64_t count, const float* of_block) {
                     for (int64_t i = 0; i < count; ++i) {
                       const Float16 weight = cache.ValueFactor(i, of_block[i]);
#pragma GCC unroll 4
                       for (int v = 0; v < kVectors; ++v) {
                         sums[v] = MultiplyAdd(weight, cache.Values(i, offset + 16 * v), sums[v]);
                       }
                     }
                   });
  for (int v = 0; v < kVectors; ++v) Store(sums[v], output + offset + 16 * v);
}

template <typename Cache>
void WeighAllValues(const AttentionTile& tile, const float* weights, int64_t first, int64_t last,
                    float* output) {
  int64_t offset = 0;
  for (; offset + 64 <= tile.head_dim; offset += 64) {
    WeighValues<4, Cache>(tile, weights, first, last, offset, output);
  }
  for (; offset + 16 <= tile.head_dim; offset += 16) {
    WeighValues<1, Cache>(tile, weights, first, last, offset, output);
  }
  for (; offset < tile.head_dim; ++offset) {
    ForBlocks<Cache>(
        tile, weights, first, last, [&](const Cache& cache, int64_t count, const float* of_block) {
          for (int64_t i = 0; i < count; ++i) {
            output[offset] += cache.ValueFactor(i, of_block[i]) * cache.Value(i, offset);
          }
        });
  }
}

template <typename Cache>
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
    ScoreChunk<Cache>(tile, first, last, scores);
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
      WeighAllValues<Cache>(tile, row, first, end, tile.outputs[query]);
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
#define US_DEFINE_CPU_KERNELS(variable, name)                                                      \
  namespace ultrasketch {                                                                          \
  const CpuKernels variable = {name, RmsNorm, SwiGlu, Add, Attend<FloatCache>, Attend<Int8Cache>}; \
  }

#endif  // ULTRASKETCH_ENGINE_BACKENDS_CPU_CPU_KERNELS_IMPL_H_
