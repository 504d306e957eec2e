// Attention over a cache of any form (cache_forms_impl.h), for the instruction set of the file that
// includes this.
//
//   scores     16 keys a vector, one dimension after the other; a few queries share what is loaded
//              and converted of the keys, a single query takes several times 16 keys at once
//   softmax    16 keys a vector, online over chunks of 256 keys
//   values     16 dimensions a vector, one key after the other; a few queries share what is
//              converted, a single one takes several vectors at once
//
// A query's numbers are added up in the same order whatever it shares. Products are rounded before
// they are added: so that instruction sets that cannot do both at once give the same bits.
#ifndef ULTRASKETCH_ENGINE_BACKENDS_CPU_ATTENTION_IMPL_H_
#define ULTRASKETCH_ENGINE_BACKENDS_CPU_ATTENTION_IMPL_H_

#include "engine/backends/cpu/cache_forms_impl.h"
#include "engine/backends/cpu/cpu_kernels.h"
#include "engine/base/vector16.h"

namespace ultrasketch {
namespace {

// Queries that share keys and values, and vectors that keep the adders busy.
constexpr int kMostShared = 4;

// x * y + sum, rounded twice.
[[maybe_unused]] inline Float16 AddProduct(const Float16& x, const Float16& y, const Float16& sum) {
  return x * y + sum;
}

// scores[q * kAttentionChunk + i] = scale * q . k[first + i] for kSets times 16 keys.
template <typename Form, int kQueries, int kSets>
void ScoreLanes(const AttentionTile& tile, const float* const* queries, int64_t first,
                float* scores) {
  Form forms[kSets];
  for (int s = 0; s < kSets; ++s) forms[s] = Form(tile, first + s * kAttentionLanes);
  Float16 totals[kSets * kQueries] = {};
  for (int64_t begin = 0; begin < tile.head_dim; begin += Form::kGroup) {
    const int64_t end = tile.head_dim - begin < Form::kGroup ? tile.head_dim : begin + Form::kGroup;
    Float16 sums[kSets * kQueries] = {};
    for (int64_t d = begin; d < end; d += Form::kDimsAtOnce) {
#pragma GCC unroll 2
      for (int k = 0; k < Form::kDimsAtOnce; ++k) {
#pragma GCC unroll 4
        for (int s = 0; s < kSets; ++s) {
          const Float16 keys = forms[s].Keys(d, k);
#pragma GCC unroll 4
          for (int q = 0; q < kQueries; ++q) {
            Float16& sum = sums[s * kQueries + q];
            sum = AddProduct(Float16(queries[q][d + k]), keys, sum);
          }
        }
      }
    }
#pragma GCC unroll 4
    for (int s = 0; s < kSets; ++s) {
#pragma GCC unroll 4
      for (int q = 0; q < kQueries; ++q) {
        const int i = s * kQueries + q;
        totals[i] = Form::kHasFactors
                        ? AddProduct(sums[i], forms[s].KeyFactors(begin / Form::kGroup), totals[i])
                        : sums[i];
      }
    }
  }
  for (int s = 0; s < kSets; ++s) {
    for (int q = 0; q < kQueries; ++q) {
      Store(totals[s * kQueries + q] * tile.scale,
            scores + q * kAttentionChunk + s * kAttentionLanes);
    }
  }
}

template <typename Form, int kQueries, int kSets>
void ScoreQueries(const AttentionTile& tile, int64_t query, int64_t first, int64_t last,
                  float* scores) {
  const float* const* const queries = tile.queries + query;
  float* const out = scores + query * kAttentionChunk - first;
  int64_t position = first;
  for (; position + (kSets - 1) * kAttentionLanes < last; position += kSets * kAttentionLanes) {
    ScoreLanes<Form, kQueries, kSets>(tile, queries, position, out + position);
  }
  for (; position < last; position += kAttentionLanes) {
    ScoreLanes<Form, kQueries, 1>(tile, queries, position, out + position);
  }
}

template <int kCount>
struct Count {
  static constexpr int value = kCount;
};

// Calls `take(query, Count)` for queries [first, last), up to kMostShared at a time.
template <typename Take>
void ForQueries(int64_t first, int64_t last, const Take& take) {
  int64_t query = first;
  for (; query + kMostShared <= last; query += kMostShared) take(query, Count<kMostShared>());
  if (last - query == 3) take(query, Count<3>());
  if (last - query == 2) take(query, Count<2>());
  if (last - query == 1) take(query, Count<1>());
}

// Vectors at once beside so many queries.
constexpr int VectorsBeside(int queries) { return queries == 1 ? 4 : queries == 2 ? 2 : 1; }

// Scores of the positions [first, last) for all queries, whole vectors of lanes.
template <typename Form>
void ScoreChunk(const AttentionTile& tile, int64_t first, int64_t last, float* scores) {
  ForQueries(0, tile.num_queries, [&](int64_t query, auto count) {
    ScoreQueries<Form, count.value, VectorsBeside(count.value)>(tile, query, first, last, scores);
  });
}

// Positions whose values are weighed for all dimensions before the next ones': they stay in the L1
// cache.
constexpr int64_t kValuesAtOnce = 64;

// A few queries, and positions [first, last) of no more than kValuesAtOnce, from a multiple of 16
// or within one block's sixteen slots.
template <typename Form, int kQueries>
struct Weighing {
  const AttentionTile& tile;
  float* const* outputs;
  int64_t first;
  int64_t last;
  // Of query q and position p: weights[q][p - first / 16 * 16].
  const float* weights[kQueries];

  // outputs[q][offset + 16 v + lane] += sum over positions of weight * value, in order.
  template <int kVectors>
  void AddTo(int64_t offset) const {
    Float16 sums[kQueries * kVectors];
#pragma GCC unroll 4
    for (int q = 0; q < kQueries; ++q) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        sums[q * kVectors + v] = Load(outputs[q] + offset + 16 * v);
      }
    }
    ForSlots([&](const Form& form, int64_t i, int64_t place) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const Float16 values = form.Values(i, offset + 16 * v);
#pragma GCC unroll 4
        for (int q = 0; q < kQueries; ++q) {
          Float16& sum = sums[q * kVectors + v];
          sum = AddProduct(Float16(weights[q][place]), values, sum);
        }
      }
    });
#pragma GCC unroll 4
    for (int q = 0; q < kQueries; ++q) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        Store(sums[q * kVectors + v], outputs[q] + offset + 16 * v);
      }
    }
  }

  // The same of fewer than 16 dimensions.
  void AddRestTo(int64_t offset, int64_t count) const {
    Float16 sums[kQueries];
    for (int q = 0; q < kQueries; ++q) sums[q] = LoadPartial(outputs[q] + offset, count);
    ForSlots([&](const Form& form, int64_t i, int64_t place) {
      const Float16 values = form.PartialValues(i, offset, count);
      for (int q = 0; q < kQueries; ++q) {
        sums[q] = AddProduct(Float16(weights[q][place]), values, sums[q]);
      }
    });
    for (int q = 0; q < kQueries; ++q) StorePartial(sums[q], count, outputs[q] + offset);
  }

  // Dimensions [begin, end), whose values have the same factors.
  void AddDims(int64_t begin, int64_t end) const {
    constexpr int kVectors = VectorsBeside(kQueries);
    int64_t offset = begin;
    for (; offset + 16 * kVectors <= end; offset += 16 * kVectors) AddTo<kVectors>(offset);
    for (; offset + 16 <= end; offset += 16) AddTo<1>(offset);
    if (offset < end) AddRestTo(offset, end - offset);
  }

  // Calls `take(form, i, place)` for the positions in order.
  template <typename Take>
  void ForSlots(const Take& take) const {
    const int64_t base = first / kAttentionLanes * kAttentionLanes;
    for (int64_t start = base; start < last; start += kAttentionLanes) {
      const Form form(tile, start);
      const int64_t begin = first > start ? first - start : 0;
      const int64_t end = last - start < kAttentionLanes ? last - start : kAttentionLanes;
      for (int64_t i = begin; i < end; ++i) take(form, i, start - base + i);
    }
  }
};

// outputs[query + q] += the weighted values of positions [first, last). `weights` are query's from
// position `chunk` on, the next queries' kAttentionChunk after them.
template <typename Form, int kQueries>
void WeighValues(const AttentionTile& tile, int64_t query, const float* weights, int64_t chunk,
                 int64_t first, int64_t last) {
  for (int64_t begin = first; begin < last;) {
    const int64_t base = begin / kAttentionLanes * kAttentionLanes;
    int64_t end = base + kValuesAtOnce;
    if (end > last) end = last;
    Weighing<Form, kQueries> weighing = {tile, tile.outputs + query, begin, end, {}};
    for (int q = 0; q < kQueries; ++q) {
      weighing.weights[q] = weights + q * kAttentionChunk + (base - chunk);
    }
    if (!Form::kHasFactors) {
      weighing.AddDims(0, tile.head_dim);
    } else {
      float scaled[kQueries][kValuesAtOnce];
      for (int64_t dim = 0; dim < tile.head_dim; dim += Form::kGroup) {
        for (int64_t start = base; start < end; start += kAttentionLanes) {
          const Float16 factors = Form(tile, start).ValueFactors(dim / Form::kGroup);
          for (int q = 0; q < kQueries; ++q) {
            const float* const own = weights + q * kAttentionChunk + (start - chunk);
            Store(Load(own) * factors, scaled[q] + (start - base));
          }
        }
        for (int q = 0; q < kQueries; ++q) weighing.weights[q] = scaled[q];
        weighing.AddDims(dim,
                         tile.head_dim - dim < Form::kGroup ? tile.head_dim : dim + Form::kGroup);
      }
    }
    begin = end;
  }
}

// The softmax of a chunk of a query's scores so far: what is true of it before and after.
struct Softmax {
  float maximum = -__builtin_inff();
  float total = 0;

  // Makes weights of `count` scores, with zeros up to the next multiple of 16, and adds them to the
  // total. `output` [size] are the values weighed before, brought to the new maximum.
  void Add(float* row, int64_t count, float* output, int64_t size) {
    // Lanes past the visible keys hold whatever the cache held: they get no weight.
    const int64_t whole = (count + 15) / 16 * 16;
    for (int64_t i = count; i < whole; ++i) row[i] = -__builtin_inff();
    Float16 largest = Load(row);
    for (int64_t i = 16; i < whole; i += 16) largest = Larger(Load(row + i), largest);
    const float chunk_maximum = Maximum(largest);
    const float new_maximum = chunk_maximum > maximum ? chunk_maximum : maximum;
    if (new_maximum > maximum && total > 0) {
      const float correction = Maximum(Exp(maximum - new_maximum));
      total *= correction;
      for (int64_t d = 0; d < size; ++d) output[d] *= correction;
    }
    maximum = new_maximum;
    Float16 sum = {};
    for (int64_t i = 0; i < whole; i += 16) {
      const Float16 weight = Exp(Load(row + i) - new_maximum);
      sum += weight;
      Store(weight, row + i);
    }
    total += Sum(sum);
  }
};

template <typename Form>
void Attend(const AttentionTile& tile, float* scores) {
  Softmax softmax[AttentionTile::kMaxQueries];
  for (int64_t query = 0; query < tile.num_queries; ++query) {
    for (int64_t d = 0; d < tile.head_dim; ++d) tile.outputs[query][d] = 0;
  }
  const int64_t num_keys = tile.num_keys[tile.num_queries - 1];
  for (int64_t first = 0; first < num_keys; first += kAttentionChunk) {
    const int64_t last = first + kAttentionChunk < num_keys ? first + kAttentionChunk : num_keys;
    ScoreChunk<Form>(tile, first, last, scores);
    int64_t ends[AttentionTile::kMaxQueries];
    int64_t num_done = 0;  // queries that see none of these keys
    for (int64_t query = 0; query < tile.num_queries; ++query) {
      ends[query] = tile.num_keys[query] < last ? tile.num_keys[query] : last;
      if (ends[query] <= first) {
        num_done = query + 1;
        continue;
      }
      softmax[query].Add(scores + query * kAttentionChunk, ends[query] - first, tile.outputs[query],
                         tile.head_dim);
    }
    ForQueries(num_done, tile.num_queries, [&](int64_t query, auto count) {
      // What all of them see, then the rest of each.
      const float* const weights = scores + query * kAttentionChunk;
      WeighValues<Form, count.value>(tile, query, weights, first, first, ends[query]);
      for (int64_t other = query + 1; other < query + count.value; ++other) {
        WeighValues<Form, 1>(tile, other, scores + other * kAttentionChunk, first, ends[query],
                             ends[other]);
      }
    });
  }
  for (int64_t query = 0; query < tile.num_queries; ++query) {
    const float inverse = 1.0f / softmax[query].total;
    for (int64_t d = 0; d < tile.head_dim; ++d) tile.outputs[query][d] *= inverse;
  }
}

}  // namespace
}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BACKENDS_CPU_ATTENTION_IMPL_H_
