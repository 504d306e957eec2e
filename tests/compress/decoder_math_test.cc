#include "engine/compress/decoder_math.h"

#include <cmath>
#include <vector>

#include "gtest/gtest.h"

#include "engine/base/random.h"
#include "engine/compress/cpu_fit_device.h"
#include "engine/compress/logit_scale.h"

namespace ultrasketch {
namespace {

std::vector<float> Random(int64_t count, uint64_t stream) {
  std::vector<float> values;
  for (int64_t i = 0; i < count; ++i) {
    values.push_back(static_cast<float>(NormalDouble(29, stream, static_cast<uint64_t>(i))));
  }
  return values;
}

TEST(DecoderMathTest, NormalizesByTheRootMeanSquare) {
  ThreadPool pool(2);
  const std::vector<float> hidden = {3, 4, 0, 0, 1, 1, 1, 1};
  const std::vector<float> weight = {1, 2, 1, 1};
  std::vector<float> out(8);
  NormalizeRows(hidden.data(), weight, 0.0f, 2, out.data(), pool);
  EXPECT_NEAR(out[0], 3 / 2.5, 1e-6);
  EXPECT_NEAR(out[1], 2 * 4 / 2.5, 1e-6);
  EXPECT_NEAR(out[5], 2, 1e-6);
}

TEST(DecoderMathTest, GatesBySilu) {
  ThreadPool pool(1);
  const std::vector<float> gates = {0.0f, 1.0f, -1.0f, 30.0f, -100.0f, 1e4f, -0.001f};
  const auto width = static_cast<int64_t>(gates.size());
  std::vector<float> gate_up = gates;
  gate_up.resize(gates.size() * 2, 3.0f);
  std::vector<float> out(gates.size());
  GateRows(gate_up.data(), width, 1, out.data(), pool);
  for (size_t i = 0; i < gates.size(); ++i) {
    const double expected = 3.0 * gates[i] / (1 + std::exp(-static_cast<double>(gates[i])));
    EXPECT_NEAR(out[i], expected, 1e-5 * std::abs(expected) + 1e-30) << gates[i];
  }
}

TEST(DecoderMathTest, AttendsCausallyWithinWindows) {
  const std::vector<float> frequencies = {1.0f, 0.3f, 0.05f};
  const std::vector<int64_t> windows = {1, 130, 5};
  constexpr int64_t kTokens = 136;
  constexpr int64_t kWidth = 6 * (4 + 2 + 2);
  const std::vector<float> original = Random(kTokens * kWidth, 1);
  std::vector<float> qkv = original;
  std::vector<float> out(kTokens * 24);
  ThreadPool pool(3);
  WindowAttention attention;
  attention.num_heads = 4;
  attention.num_kv_heads = 2;
  attention.head_dim = 6;
  attention.inverse_frequencies = frequencies;
  AttendWindows(attention, windows, qkv.data(), out.data(), pool);

  const auto rotated = [&](int64_t token, int64_t position, int64_t head, int64_t i) {
    const float* values = original.data() + token * kWidth + head * 6;
    const double angle = static_cast<double>(position) * frequencies[static_cast<size_t>(i % 3)];
    return i < 3 ? values[i] * std::cos(angle) - values[i + 3] * std::sin(angle)
                 : values[i] * std::cos(angle) + values[i - 3] * std::sin(angle);
  };
  int64_t first = 0;
  for (const int64_t count : windows) {
    for (int64_t query = 0; query < count; ++query) {
      for (int64_t head = 0; head < 4; ++head) {
        std::vector<double> weights;
        double sum = 0;
        for (int64_t key = 0; key <= query; ++key) {
          double score = 0;
          for (int64_t i = 0; i < 6; ++i) {
            score +=
                rotated(first + query, query, head, i) * rotated(first + key, key, 4 + head / 2, i);
          }
          weights.push_back(std::exp(score / std::sqrt(6.0)));
          sum += weights.back();
        }
        for (int64_t i = 0; i < 6; ++i) {
          double expected = 0;
          for (int64_t key = 0; key <= query; ++key) {
            expected +=
                weights[static_cast<size_t>(key)] / sum *
                original[static_cast<size_t>((first + key) * kWidth + 36 + head / 2 * 6 + i)];
          }
          ASSERT_NEAR(out[static_cast<size_t>((first + query) * 24 + head * 6 + i)], expected, 1e-4)
              << query << " of " << count << ", head " << head;
        }
      }
    }
    first += count;
  }
}

TEST(DecoderMathTest, SumsExponentials) {
  for (const int64_t count : {1, 15, 16, 1000, 5000}) {
    const std::vector<float> logits = Random(count, 2);
    const std::vector<float> values = Random(count, 3);
    double weighted = 0;
    const double sum = SumOfExp(logits.data(), 5.0f, 0.7f, values.data(), count, weighted);
    double expected = 0;
    double expected_weighted = 0;
    for (size_t i = 0; i < logits.size(); ++i) {
      const double value = std::exp((static_cast<double>(logits[i]) - 5.0) * 0.7);
      expected += value;
      expected_weighted += value * values[i];
    }
    EXPECT_NEAR(sum, expected, 1e-5 * expected);
    EXPECT_NEAR(weighted, expected_weighted, 1e-5 * expected);
  }
}

TEST(LogitScaleTest, UndoesAScale) {
  constexpr int64_t kVocab = 5000;
  constexpr int64_t kHidden = 24;
  constexpr int64_t kTokens = 50;
  const std::vector<float> head = Random(kVocab * kHidden, 4);
  const TensorView view = {
      DType::kF32, {kVocab, kHidden}, reinterpret_cast<const uint8_t*>(head.data())};
  std::vector<float> dense_x = Random(kTokens * kHidden, 5);
  for (float& value : dense_x) value *= 0.4f;
  ThreadPool pool(2);
  for (const float factor : {0.8f, 1.0f, 2.0f}) {
    std::vector<float> x = dense_x;
    for (float& value : x) value *= factor;
    EXPECT_NEAR(*BestLogitScale(view, dense_x.data(), x.data(), kTokens, *MakeCpuFitDevice(pool)),
                1 / factor, 0.01);
  }
}

TEST(LogitScaleTest, TrustsNoiseLittle) {
  constexpr int64_t kVocab = 300;
  constexpr int64_t kHidden = 16;
  constexpr int64_t kTokens = 200;
  const std::vector<float> head = Random(kVocab * kHidden, 6);
  const TensorView view = {
      DType::kF32, {kVocab, kHidden}, reinterpret_cast<const uint8_t*>(head.data())};
  const std::vector<float> dense_x = Random(kTokens * kHidden, 7);
  const std::vector<float> noise = Random(kTokens * kHidden, 8);
  ThreadPool pool(2);
  EXPECT_LT(*BestLogitScale(view, dense_x.data(), noise.data(), kTokens, *MakeCpuFitDevice(pool)),
            0.3);
}

}  // namespace
}  // namespace ultrasketch
