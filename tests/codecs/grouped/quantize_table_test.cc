// Rounding to integers in groups.
#include "engine/codecs/grouped/quantize_table.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "gtest/gtest.h"

#include "tests/codecs/grouped/grouped_examples.h"

namespace ultrasketch {
namespace {

// A table of floats.
class FloatTable : public EncodedLinear {
 public:
  FloatTable(int64_t rows, int64_t cols, std::vector<float> values)
      : site_(TableSite(rows, cols)), values_(std::move(values)) {}
  const LinearSite& site() const override { return site_; }
  std::string_view codec_name() const override { return "floats"; }
  void DecodeRows(int64_t first_row, int64_t num_rows, float* out) const override {
    std::copy_n(values_.data() + first_row * site_.cols, num_rows * site_.cols, out);
  }
  std::vector<NamedTensor> StoredTensors() const override { return {}; }
  std::unique_ptr<CpuLinear> PackForCpu() const override { return nullptr; }
  const std::vector<float>& values() const { return values_; }

 private:
  LinearSite site_;
  std::vector<float> values_;
};

FloatTable RandomTable(int64_t rows, int64_t cols, double deviation) {
  std::vector<float> values(static_cast<size_t>(rows * cols));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<float>(deviation * NormalDouble(11, 0, i));
  }
  return FloatTable(rows, cols, std::move(values));
}

std::vector<float> Decoded(const GroupedTable& table) {
  std::vector<float> values(static_cast<size_t>(table.site().num_weights()));
  table.DecodeRows(0, table.site().rows, values.data());
  return values;
}

double RelativeError(const std::vector<float>& found, const std::vector<float>& expected) {
  double error = 0;
  double energy = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    error += std::pow(double{found[i]} - double{expected[i]}, 2);
    energy += std::pow(double{expected[i]}, 2);
  }
  return error / energy;
}

// Squared error of round to nearest with max|w| / 7 as the scale.
double PlainInt4Error(const std::vector<float>& weights) {
  double error = 0;
  for (size_t first = 0; first < weights.size(); first += kGroupColumns) {
    double largest = 0;
    for (size_t i = 0; i < kGroupColumns; ++i) {
      largest = std::max(largest, std::fabs(double{weights[first + i]}));
    }
    for (size_t i = 0; i < kGroupColumns; ++i) {
      const double w = weights[first + i];
      error += std::pow(std::round(w / largest * 7) * largest / 7 - w, 2);
    }
  }
  return error;
}

TEST(QuantizeTableTest, Int8IsWithinHalfAStepOfEveryWeight) {
  ThreadPool pool(2);
  for (const double deviation : {1e-30, 1e-6, 0.02, 1.0, 1e6}) {
    const FloatTable table = RandomTable(9, 130, deviation);
    const auto rounded = QuantizeTable(table, GroupedType::kInt8, pool);
    const std::vector<float> decoded = Decoded(*rounded);
    const std::vector<float> scales = ToFloatVector(rounded->scales());
    for (int64_t i = 0; i < 9 * 130; ++i) {
      const double scale = scales[static_cast<size_t>(i / 130 * 3 + i % 130 / 64)];
      const auto place = static_cast<size_t>(i);
      ASSERT_NEAR(decoded[place], table.values()[place], 0.505 * scale) << i;
    }
    EXPECT_LT(RelativeError(decoded, table.values()), 1e-4);
  }
}

TEST(QuantizeTableTest, TheSearchForInt4ScalesPays) {
  ThreadPool pool(2);
  const FloatTable table = RandomTable(64, 256, 0.02);
  const auto rounded = QuantizeTable(table, GroupedType::kInt4, pool);
  double energy = 0;
  for (const float w : table.values()) energy += double{w} * double{w};
  const double error = RelativeError(Decoded(*rounded), table.values()) * energy;
  EXPECT_LT(error, 0.87 * PlainInt4Error(table.values()));
}

TEST(QuantizeTableTest, KeepsWhatIsAMultipleOfAScaleAlready) {
  ThreadPool pool(1);
  for (const GroupedType type : {GroupedType::kInt8, GroupedType::kInt4}) {
    const int limit = GroupedLimit(type);
    std::vector<float> values(3 * 70);
    for (size_t i = 0; i < values.size(); ++i) {
      const int integer =
          static_cast<int>(RandomWord(12, 0, i) % static_cast<uint64_t>(2 * limit + 1));
      values[i] = 0.125f * static_cast<float>(integer - limit);
    }
    // Each group has its largest.
    for (const size_t i : {0, 69, 70, 139, 140, 209})
      values[i] = -0.125f * static_cast<float>(limit);
    const FloatTable table(3, 70, values);
    EXPECT_EQ(Decoded(*QuantizeTable(table, type, pool)), values);
  }
}

TEST(QuantizeTableTest, RoundsZerosTinyAndHugeWeightsToFiniteOnes) {
  for (const GroupedType type : {GroupedType::kInt8, GroupedType::kInt4}) {
    for (const float weight : {0.0f, -0.0f, FLT_TRUE_MIN, FLT_MIN, 1e-39f, FLT_MAX, -FLT_MAX}) {
      float weights[5] = {weight, 0, weight / 2, -weight, 0};
      const RoundedGroup group = RoundGroup(weights, 5, type);
      const float scale = Bf16ToFloat(group.scale);
      EXPECT_GE(scale, 0);
      for (int i = 0; i < 5; ++i) {
        const float decoded = static_cast<float>(group.values[i]) * scale;
        EXPECT_TRUE(std::isfinite(decoded)) << weight;
        // No bfloat16 is within 2^-134 of what has none of its own; all else to half a step.
        EXPECT_NEAR(decoded / FLT_MAX, weights[i] / FLT_MAX,
                    0.51 * scale / FLT_MAX + 128 * 0x1p-134 / FLT_MAX +
                        0.004 * std::fabs(weights[i]) / FLT_MAX)
            << weight;
      }
    }
  }
}

TEST(QuantizeTableTest, DoesNotDependOnTheThreads) {
  const FloatTable table = RandomTable(21, 100, 0.5);
  ThreadPool one(1);
  ThreadPool three(3);
  for (const GroupedType type : {GroupedType::kInt8, GroupedType::kInt4}) {
    const auto first = QuantizeTable(table, type, one);
    const auto second = QuantizeTable(table, type, three);
    for (size_t i = 0; i < 2; ++i) {
      const TensorView a = first->StoredTensors()[i].view;
      const TensorView b = second->StoredTensors()[i].view;
      EXPECT_EQ(std::memcmp(a.data, b.data, static_cast<size_t>(a.num_bytes())), 0);
    }
    EXPECT_EQ(first->site().name, table.site().name);
  }
}

}  // namespace
}  // namespace ultrasketch
