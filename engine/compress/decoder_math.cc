#include "engine/compress/decoder_math.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "engine/compress/products.h"

namespace ultrasketch {
namespace {

constexpr int64_t kTokensPerTask = 16;

// Queries that go over the keys together.
constexpr int64_t kQueriesPerTask = 96;

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define US_VECTOR_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define US_VECTOR_CLONES
#endif

// e^x for x <= 0, relative error below 1e-6; 0 below the smallest normal number.
inline __attribute__((always_inline)) float Exp(float x) {
  constexpr float kLog2E = 1.44269504f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float power = std::max(x * kLog2E, -126.0f);
  const float shifted = power + kRound;
  const float fraction = (power - (shifted - kRound)) * 0.693147181f;
  const float polynomial =
      1.0f +
      fraction *
          (1.0f +
           fraction * (0.5f + fraction * (0.166666667f +
                                          fraction * (0.0416666667f +
                                                      fraction * (0.00833333333f +
                                                                  fraction * 0.00138888889f)))));
  const int32_t exponent = std::bit_cast<int32_t>(shifted) << 23;
  const float value = std::bit_cast<float>(std::bit_cast<int32_t>(polynomial) + exponent);
  return x * kLog2E < -126.0f ? 0.0f : value;
}

// Turns scores [num_keys, kQueriesPerTask] into weights, column by column: softmax of scale *
// scores over keys 0 to first_query + column, 0 for later keys.
US_VECTOR_CLONES void CausalSoftmax(float* scores, int64_t num_keys, int64_t first_query,
                                    float scale) {
  float maxima[kQueriesPerTask];
  float sums[kQueriesPerTask];
  for (int64_t query = 0; query < kQueriesPerTask; ++query) {
    maxima[query] = -std::numeric_limits<float>::infinity();
    sums[query] = 0.0f;
  }
  for (int64_t key = 0; key < num_keys; ++key) {
    float* row = scores + key * kQueriesPerTask;
    const auto first_column = static_cast<int32_t>(key - first_query);
    for (int32_t query = 0; query < kQueriesPerTask; ++query) {
      const float score =
          query >= first_column ? row[query] * scale : -std::numeric_limits<float>::infinity();
      row[query] = score;
      maxima[query] = maxima[query] > score ? maxima[query] : score;
    }
  }
  for (int64_t key = 0; key < num_keys; ++key) {
    float* row = scores + key * kQueriesPerTask;
    for (int64_t query = 0; query < kQueriesPerTask; ++query) {
      row[query] = Exp(row[query] - maxima[query]);
      sums[query] += row[query];
    }
  }
  for (int64_t query = 0; query < kQueriesPerTask; ++query) sums[query] = 1.0f / sums[query];
  for (int64_t key = 0; key < num_keys; ++key) {
    float* row = scores + key * kQueriesPerTask;
    for (int64_t query = 0; query < kQueriesPerTask; ++query) row[query] *= sums[query];
  }
}

// silu(gate) * up
US_VECTOR_CLONES void Gate(const float* gate, const float* up, int64_t width, float* out) {
  for (int64_t i = 0; i < width; ++i) {
    const float magnitude = std::abs(gate[i]);
    const float small = Exp(-magnitude);
    const float sigmoid = (gate[i] < 0.0f ? small : 1.0f) / (1.0f + small);
    out[i] = gate[i] * sigmoid * up[i];
  }
}

// Of up to kExpBlock logits, in float.
constexpr int64_t kExpBlock = 1024;
constexpr int kExpLanes = 16;
US_VECTOR_CLONES void BlockOfExp(const float* logits, float maximum, float scale,
                                 const float* values, int64_t count, float* sums,
                                 float* weighted_sums) {
  for (int64_t i = 0; i + kExpLanes <= count; i += kExpLanes) {
    for (int lane = 0; lane < kExpLanes; ++lane) {
      const float value = Exp((logits[i + lane] - maximum) * scale);
      sums[lane] += value;
      weighted_sums[lane] += value * values[i + lane];
    }
  }
  for (int64_t i = count / kExpLanes * kExpLanes; i < count; ++i) {
    const float value = Exp((logits[i] - maximum) * scale);
    sums[0] += value;
    weighted_sums[0] += value * values[i];
  }
}

void RotateHead(float* head, absl::Span<const float> cosines, absl::Span<const float> sines) {
  const size_t half = cosines.size();
  for (size_t i = 0; i < half; ++i) {
    const float first = head[i];
    const float second = head[i + half];
    head[i] = first * cosines[i] - second * sines[i];
    head[i + half] = second * cosines[i] + first * sines[i];
  }
}

// out = x / rms(x) * weight; may be in place.
void NormalizeRow(const float* x, absl::Span<const float> weight, float epsilon, float* out) {
  double energy = 0;
  for (size_t i = 0; i < weight.size(); ++i) energy += static_cast<double>(x[i]) * x[i];
  const auto scale =
      static_cast<float>(1 / std::sqrt(energy / static_cast<double>(weight.size()) + epsilon));
  for (size_t i = 0; i < weight.size(); ++i) out[i] = x[i] * scale * weight[i];
}

}  // namespace

void NormalizeRows(const float* hidden, absl::Span<const float> weight, float epsilon,
                   int64_t num_tokens, float* out, ThreadPool& pool) {
  const auto width = static_cast<int64_t>(weight.size());
  pool.ParallelFor(num_tokens, kTokensPerTask, [&](int64_t begin, int64_t end, int) {
    for (int64_t token = begin; token < end; ++token) {
      NormalizeRow(hidden + token * width, weight, epsilon, out + token * width);
    }
  });
}

void AttendWindows(const WindowAttention& attention, absl::Span<const int64_t> window_tokens,
                   float* qkv, float* out, ThreadPool& pool) {
  const int64_t head_dim = attention.head_dim;
  const int64_t heads_per_kv_head = attention.num_heads / attention.num_kv_heads;
  const int64_t query_width = attention.num_heads * head_dim;
  const int64_t key_width = attention.num_kv_heads * head_dim;
  const int64_t qkv_width = query_width + 2 * key_width;

  std::vector<int64_t> positions;
  for (const int64_t count : window_tokens) {
    for (int64_t position = 0; position < count; ++position) positions.push_back(position);
  }
  const auto num_tokens = static_cast<int64_t>(positions.size());

  pool.ParallelFor(num_tokens, kTokensPerTask, [&](int64_t begin, int64_t end, int) {
    const absl::Span<const float> frequencies = attention.inverse_frequencies;
    std::vector<float> cosines(frequencies.size());
    std::vector<float> sines(frequencies.size());
    for (int64_t token = begin; token < end; ++token) {
      const auto position = static_cast<float>(positions[static_cast<size_t>(token)]);
      for (size_t i = 0; i < cosines.size(); ++i) {
        cosines[i] = std::cos(position * frequencies[i]);
        sines[i] = std::sin(position * frequencies[i]);
      }
      for (int64_t head = 0; head < attention.num_heads + attention.num_kv_heads; ++head) {
        float* const values = qkv + token * qkv_width + head * head_dim;
        const absl::Span<const float> norm =
            head < attention.num_heads ? attention.query_norm : attention.key_norm;
        if (!norm.empty()) NormalizeRow(values, norm, attention.epsilon, values);
        RotateHead(values, cosines, sines);
      }
    }
  });

  struct Task {
    int64_t first_token;  // of the window
    int64_t first_query;
    int64_t num_queries;
    int64_t head;
  };
  std::vector<Task> tasks;
  int64_t first_token = 0;
  for (const int64_t count : window_tokens) {
    for (int64_t query = 0; query < count; query += kQueriesPerTask) {
      for (int64_t head = 0; head < attention.num_heads; ++head) {
        tasks.push_back({first_token, query, std::min(kQueriesPerTask, count - query), head});
      }
    }
    first_token += count;
  }
  const float scale = 1 / std::sqrt(static_cast<float>(head_dim));
  pool.ParallelFor(static_cast<int64_t>(tasks.size()), 1, [&](int64_t begin, int64_t end, int) {
    thread_local std::vector<float> queries;  // [head_dim, kQueriesPerTask]
    thread_local std::vector<float> keys;     // [head_dim, num_keys]
    thread_local std::vector<float> values;   // [num_keys, head_dim]
    thread_local std::vector<float> scores;   // [num_keys, kQueriesPerTask]
    thread_local std::vector<float> results;  // [kQueriesPerTask, head_dim]
    for (int64_t index = begin; index < end; ++index) {
      const Task& task = tasks[static_cast<size_t>(index)];
      const int64_t num_keys = task.first_query + task.num_queries;
      queries.assign(static_cast<size_t>(head_dim * kQueriesPerTask), 0.0f);
      keys.resize(static_cast<size_t>(head_dim * num_keys));
      values.resize(static_cast<size_t>(num_keys * head_dim));
      scores.resize(static_cast<size_t>(num_keys * kQueriesPerTask));
      results.resize(static_cast<size_t>(kQueriesPerTask * head_dim));
      const float* window = qkv + task.first_token * qkv_width;
      const float* key_rows = window + query_width + task.head / heads_per_kv_head * head_dim;
      for (int64_t key = 0; key < num_keys; ++key) {
        const float* row = key_rows + key * qkv_width;
        for (int64_t i = 0; i < head_dim; ++i)
          keys[static_cast<size_t>(i * num_keys + key)] = row[i];
        std::copy_n(row + key_width, head_dim, values.data() + key * head_dim);
      }
      for (int64_t query = 0; query < task.num_queries; ++query) {
        const float* row = window + (task.first_query + query) * qkv_width + task.head * head_dim;
        for (int64_t i = 0; i < head_dim; ++i) {
          queries[static_cast<size_t>(i * kQueriesPerTask + query)] = row[i];
        }
      }
      OuterProducts(keys.data(), num_keys, queries.data(), kQueriesPerTask, head_dim,
                    scores.data());
      CausalSoftmax(scores.data(), num_keys, task.first_query, scale);
      OuterProducts(scores.data(), kQueriesPerTask, values.data(), head_dim, num_keys,
                    results.data());
      for (int64_t query = 0; query < task.num_queries; ++query) {
        std::copy_n(results.data() + query * head_dim, head_dim,
                    out + (task.first_token + task.first_query + query) * query_width +
                        task.head * head_dim);
      }
    }
  });
}

double SumOfExp(const float* logits, float maximum, float scale, const float* values, int64_t count,
                double& weighted) {
  double sum = 0;
  weighted = 0;
  for (int64_t first = 0; first < count; first += kExpBlock) {
    float sums[kExpLanes] = {};
    float weighted_sums[kExpLanes] = {};
    BlockOfExp(logits + first, maximum, scale, values + first, std::min(kExpBlock, count - first),
               sums, weighted_sums);
    for (int lane = 0; lane < kExpLanes; ++lane) {
      sum += sums[lane];
      weighted += weighted_sums[lane];
    }
  }
  return sum;
}

void GateRows(const float* gate_up, int64_t width, int64_t num_tokens, float* out,
              ThreadPool& pool) {
  pool.ParallelFor(num_tokens, kTokensPerTask, [&](int64_t begin, int64_t end, int) {
    for (int64_t token = begin; token < end; ++token) {
      const float* gate = gate_up + token * 2 * width;
      Gate(gate, gate + width, width, out + token * width);
    }
  });
}

}  // namespace ultrasketch
