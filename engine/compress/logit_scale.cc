#include "engine/compress/logit_scale.h"

#include <algorithm>
#include <array>
#include <vector>

#include "absl/types/span.h"

#include "engine/base/status.h"

namespace ultrasketch {
namespace {

constexpr int kNumScales = 27;
constexpr double kScaleStep = (kLargestLogitScale - kLeastLogitScale) / (kNumScales - 1);
// Bounds the memory for logits.
constexpr int64_t kLogitsAtOnce = int64_t{1} << 24;

int64_t TokensAtOnce(int64_t vocab_size) {
  return std::max<int64_t>(kLogitsAtOnce / vocab_size, 16);
}

double ScaleAt(int index) { return kLeastLogitScale + index * kScaleStep; }

}  // namespace

absl::StatusOr<double> BestLogitScale(const TensorView& head, const float* dense_x,
                                      const float* compressed_x, int64_t num_tokens,
                                      FitDevice& device) {
  const int64_t vocab_size = head.shape[0];
  const int64_t hidden_size = head.shape[1];
  const int64_t tokens_at_once = std::min(TokensAtOnce(vocab_size), num_tokens);
  US_ASSIGN_OR_RETURN(const auto product, device.LoadHead(head));
  US_ASSIGN_OR_RETURN(const auto dense_logits, device.Allocate(tokens_at_once * vocab_size));
  US_ASSIGN_OR_RETURN(const auto compressed_logits, device.Allocate(tokens_at_once * vocab_size));
  std::array<double, kNumScales> scales;
  for (int index = 0; index < kNumScales; ++index) {
    scales[static_cast<size_t>(index)] = ScaleAt(index);
  }
  std::vector<double> token_losses(static_cast<size_t>(num_tokens) * kNumScales);
  for (int64_t first = 0; first < num_tokens; first += tokens_at_once) {
    const int64_t count = std::min(tokens_at_once, num_tokens - first);
    product->Apply(dense_x + first * hidden_size, count, dense_logits->data());
    product->Apply(compressed_x + first * hidden_size, count, compressed_logits->data());
    US_RETURN_IF_ERROR(device.CrossEntropies(
        dense_logits->data(), compressed_logits->data(), count, vocab_size, scales,
        absl::MakeSpan(token_losses)
            .subspan(static_cast<size_t>(first) * kNumScales,
                     static_cast<size_t>(count) * kNumScales)));
  }
  std::array<double, kNumScales> losses = {};
  for (size_t i = 0; i < token_losses.size(); ++i) losses[i % kNumScales] += token_losses[i];
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
  return 2 * TokensAtOnce(config.vocab_size) * config.vocab_size *
         static_cast<int64_t>(sizeof(float));
}

}  // namespace ultrasketch
