#include "engine/compress/logit_scale.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "engine/base/check.h"
#include "engine/compress/decoder_math.h"
#include "engine/compress/products.h"

namespace ultrasketch {
namespace {

constexpr int kNumScales = 27;
constexpr double kScaleStep = (kLargestLogitScale - kLeastLogitScale) / (kNumScales - 1);
// Bound the memory for logits and for a part of the head as float.
constexpr int64_t kLogitsAtOnce = int64_t{1} << 24;
constexpr int64_t kHeadRowsAtOnce = 4096;

int64_t TokensAtOnce(int64_t vocab_size) {
  return std::max<int64_t>(kLogitsAtOnce / vocab_size, 16);
}

using Losses = std::array<double, kNumScales>;

double ScaleAt(int index) { return kLeastLogitScale + index * kScaleStep; }

// logits [num_tokens, vocab_size] = x head^T.
void ComputeLogits(const TensorView& head, const float* x, int64_t num_tokens,
                   std::vector<float>& logits, ThreadPool& pool) {
  const int64_t vocab_size = head.shape[0];
  const int64_t hidden_size = head.shape[1];
  std::vector<float> rows;
  std::vector<float> transposed;
  std::vector<float> part;
  for (int64_t first = 0; first < vocab_size; first += kHeadRowsAtOnce) {
    const int64_t count = std::min(kHeadRowsAtOnce, vocab_size - first);
    rows.resize(static_cast<size_t>(count * hidden_size));
    transposed.resize(rows.size());
    part.resize(static_cast<size_t>(num_tokens * count));
    CopyToFloat(head, first * hidden_size, count * hidden_size, rows.data());
    Transpose(rows.data(), count, hidden_size, transposed.data(), pool);
    MultiplyTransposed(x, transposed.data(), num_tokens, count, hidden_size, part.data(), pool);
    for (int64_t token = 0; token < num_tokens; ++token) {
      std::copy_n(part.data() + token * count, count, logits.data() + token * vocab_size + first);
    }
  }
}

// Cross-entropy of one token for every scale.
void AddLosses(const float* dense, const float* compressed, int64_t vocab_size, Losses& losses) {
  const float dense_maximum = *std::max_element(dense, dense + vocab_size);
  const float maximum = *std::max_element(compressed, compressed + vocab_size);
  double weighted = 0;
  const double dense_sum = SumOfExp(dense, dense_maximum, 1.0f, compressed, vocab_size, weighted);
  const double expected = weighted / dense_sum;  // the compressed logit under the dense model
  for (int index = 0; index < kNumScales; ++index) {
    const double scale = ScaleAt(index);
    double ignored = 0;
    const double sum =
        SumOfExp(compressed, maximum, static_cast<float>(scale), compressed, vocab_size, ignored);
    losses[static_cast<size_t>(index)] += std::log(sum) + scale * (maximum - expected);
  }
}

}  // namespace

double BestLogitScale(const TensorView& head, const float* dense_x, const float* compressed_x,
                      int64_t num_tokens, ThreadPool& pool) {
  const int64_t vocab_size = head.shape[0];
  const int64_t hidden_size = head.shape[1];
  const int64_t tokens_at_once = std::min(TokensAtOnce(vocab_size), num_tokens);
  std::vector<float> dense_logits(static_cast<size_t>(tokens_at_once * vocab_size));
  std::vector<float> compressed_logits(dense_logits.size());
  std::vector<Losses> token_losses(static_cast<size_t>(num_tokens), Losses{});
  for (int64_t first = 0; first < num_tokens; first += tokens_at_once) {
    const int64_t count = std::min(tokens_at_once, num_tokens - first);
    ComputeLogits(head, dense_x + first * hidden_size, count, dense_logits, pool);
    ComputeLogits(head, compressed_x + first * hidden_size, count, compressed_logits, pool);
    pool.ParallelFor(count, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t token = begin; token < end; ++token) {
        AddLosses(dense_logits.data() + token * vocab_size,
                  compressed_logits.data() + token * vocab_size, vocab_size,
                  token_losses[static_cast<size_t>(first + token)]);
      }
    });
  }
  Losses losses = {};
  for (const Losses& token : token_losses) {
    for (size_t index = 0; index < losses.size(); ++index) losses[index] += token[index];
  }
  // The loss is convex in the scale: a parabola through the least of the grid and its neighbours.
  const auto best =
      static_cast<int>(std::min_element(losses.begin(), losses.end()) - losses.begin());
  if (best == 0 || best == kNumScales - 1) return ScaleAt(best);
  const auto middle = static_cast<size_t>(best);
  const double slope = losses[middle + 1] - losses[middle - 1];
  const double bend = losses[middle + 1] - 2 * losses[middle] + losses[middle - 1];
  const double shift = bend > 0 ? std::clamp(-0.5 * slope / bend, -1.0, 1.0) : 0.0;
  return ScaleAt(best) + shift * kScaleStep;
}

int64_t LogitScaleMemory(const ModelConfig& config) {
  const int64_t tokens = TokensAtOnce(config.vocab_size);
  const int64_t head_rows = std::min<int64_t>(kHeadRowsAtOnce, config.vocab_size);
  const int64_t floats =
      2 * tokens * config.vocab_size + head_rows * (2 * config.hidden_size + tokens);
  return floats * static_cast<int64_t>(sizeof(float));
}

}  // namespace ultrasketch
