#include "engine/compress/decoder_math.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace ultrasketch {
namespace {

constexpr int64_t kTokensPerTask = 16;

// `count` sums of products of `size` floats, with as many independent partial sums as vectorise.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define US_VECTOR_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define US_VECTOR_CLONES
#endif

// scores[j] = scale * q . k_j for j < count, k_j at keys + j * stride.
US_VECTOR_CLONES void ScoreKeys(const float* query, const float* keys, int64_t stride, int64_t size,
                                int64_t count, float scale, float* scores) {
  constexpr int kLanes = 16;
  for (int64_t j = 0; j < count; ++j) {
    const float* key = keys + j * stride;
    float partial[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) partial[lane] += query[i + lane] * key[i + lane];
    }
    float sum = 0.0f;
    for (; i < size; ++i) sum += query[i] * key[i];
    for (int width = kLanes / 2; width > 0; width /= 2) {
      for (int lane = 0; lane < width; ++lane) partial[lane] += partial[lane + width];
    }
    scores[j] = scale * (sum + partial[0]);
  }
}

// out [size] = sum over j of weights[j] * values_j.
US_VECTOR_CLONES void SumValues(const float* weights, const float* values, int64_t stride,
                                int64_t size, int64_t count, float* out) {
  std::fill(out, out + size, 0.0f);
  for (int64_t j = 0; j < count; ++j) {
    const float weight = weights[j];
    const float* value = values + j * stride;
    for (int64_t i = 0; i < size; ++i) out[i] += weight * value[i];
  }
}

void Softmax(float* scores, int64_t count) {
  const float maximum = *std::max_element(scores, scores + count);
  double sum = 0;
  for (int64_t j = 0; j < count; ++j) {
    scores[j] = std::exp(scores[j] - maximum);
    sum += scores[j];
  }
  const auto inverse = static_cast<float>(1 / sum);
  for (int64_t j = 0; j < count; ++j) scores[j] *= inverse;
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

}  // namespace

void NormalizeRows(const float* hidden, absl::Span<const float> weight, float epsilon,
                   int64_t num_tokens, float* out, ThreadPool& pool) {
  const auto width = static_cast<int64_t>(weight.size());
  pool.ParallelFor(num_tokens, kTokensPerTask, [&](int64_t begin, int64_t end, int) {
    for (int64_t token = begin; token < end; ++token) {
      const float* in = hidden + token * width;
      double energy = 0;
      for (int64_t i = 0; i < width; ++i) energy += static_cast<double>(in[i]) * in[i];
      const auto scale =
          static_cast<float>(1 / std::sqrt(energy / static_cast<double>(width) + epsilon));
      float* row = out + token * width;
      for (int64_t i = 0; i < width; ++i) row[i] = in[i] * scale * weight[static_cast<size_t>(i)];
    }
  });
}

void AttendWindows(const ModelConfig& config, absl::Span<const float> inverse_frequencies,
                   absl::Span<const int64_t> window_tokens, float* qkv, float* out,
                   ThreadPool& pool) {
  const int64_t head_dim = config.head_dim;
  const int64_t heads_per_kv_head = config.num_attention_heads / config.num_kv_heads;
  const int64_t query_width = config.query_width();
  const int64_t qkv_width = query_width + 2 * config.key_width();

  struct Place {
    int64_t first_token;  // of the window
    int64_t position;
  };
  std::vector<Place> places;
  for (const int64_t count : window_tokens) {
    const auto first_token = static_cast<int64_t>(places.size());
    for (int64_t position = 0; position < count; ++position) {
      places.push_back({first_token, position});
    }
  }
  const auto num_tokens = static_cast<int64_t>(places.size());

  pool.ParallelFor(num_tokens, kTokensPerTask, [&](int64_t begin, int64_t end, int) {
    std::vector<float> cosines(inverse_frequencies.size());
    std::vector<float> sines(inverse_frequencies.size());
    for (int64_t token = begin; token < end; ++token) {
      const auto position = static_cast<float>(places[static_cast<size_t>(token)].position);
      for (size_t i = 0; i < cosines.size(); ++i) {
        cosines[i] = std::cos(position * inverse_frequencies[i]);
        sines[i] = std::sin(position * inverse_frequencies[i]);
      }
      for (int64_t head = 0; head < config.num_attention_heads + config.num_kv_heads; ++head) {
        RotateHead(qkv + token * qkv_width + head * head_dim, cosines, sines);
      }
    }
  });

  // Later tokens attend to more: dealt out in turn, so that the threads get equal work.
  const int64_t num_threads = pool.num_threads();
  const float scale = 1 / std::sqrt(static_cast<float>(head_dim));
  pool.ParallelFor(num_threads, 1, [&](int64_t begin, int64_t end, int) {
    std::vector<float> scores;
    for (int64_t share = begin; share < end; ++share) {
      for (int64_t token = share; token < num_tokens; token += num_threads) {
        const Place& place = places[static_cast<size_t>(token)];
        const int64_t count = place.position + 1;
        scores.resize(std::max(scores.size(), static_cast<size_t>(count)));
        for (int64_t head = 0; head < config.num_attention_heads; ++head) {
          const float* keys = qkv + place.first_token * qkv_width + query_width +
                              head / heads_per_kv_head * head_dim;
          ScoreKeys(qkv + token * qkv_width + head * head_dim, keys, qkv_width, head_dim, count,
                    scale, scores.data());
          Softmax(scores.data(), count);
          SumValues(scores.data(), keys + config.key_width(), qkv_width, head_dim, count,
                    out + token * query_width + head * head_dim);
        }
      }
    }
  });
}

void GateRows(const float* gate_up, int64_t width, int64_t num_tokens, float* out,
              ThreadPool& pool) {
  pool.ParallelFor(num_tokens, kTokensPerTask, [&](int64_t begin, int64_t end, int) {
    for (int64_t token = begin; token < end; ++token) {
      const float* gate = gate_up + token * 2 * width;
      const float* up = gate + width;
      for (int64_t i = 0; i < width; ++i) {
        out[token * width + i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
      }
    }
  });
}

}  // namespace ultrasketch
