// Insertion and query: what the AbsMaxMin sketch promises about any matrix.
#include "engine/codecs/absmaxmin/absmaxmin_sketch.h"

#include <cmath>
#include <functional>
#include <limits>

#include "gtest/gtest.h"

#include "engine/codecs/absmaxmin/absmaxmin_linear.h"
#include "tests/codecs/absmaxmin/absmaxmin_examples.h"

namespace ultrasketch {
namespace {

struct Matrix {
  const char* name;
  std::function<float(int64_t index)> weight;
};

double Normal(int64_t index) { return NormalDouble(9, 1, static_cast<uint64_t>(index)); }

const std::vector<Matrix>& Matrices() {
  static const std::vector<Matrix> matrices = {
      {"Normal", [](int64_t i) { return static_cast<float>(0.02 * Normal(i)); }},
      {"HeavyTails", [](int64_t i) { return static_cast<float>(std::pow(Normal(i), 9)); }},
      {"Zeros", [](int64_t) { return 0.0f; }},
      {"ManyZeros", [](int64_t i) { return i % 3 == 0 ? 0.0f : static_cast<float>(Normal(i)); }},
      {"EqualMagnitudes", [](int64_t i) { return Normal(i) < 0 ? -0.3f : 0.3f; }},
      {"Denormals", [](int64_t i) { return static_cast<float>(1e-42 * Normal(i)); }},
      {"LeastDenormal", [](int64_t i) { return Normal(i) < 0 ? -1e-45f : 1e-45f; }},
      {"Largest",
       [](int64_t i) {
         return std::numeric_limits<float>::max() * (Normal(i) < 0 ? -1.0f : 1.0f);
       }},
      {"AllMagnitudes",
       [](int64_t i) {
         return static_cast<float>(std::ldexp(Normal(i), static_cast<int>(i % 250) - 130));
       }},
      {"WholeSteps", [](int64_t i) { return static_cast<float>(i % 23 - 11) * 0.1f; }},
      {"OneLarge", [](int64_t i) { return i == 5 ? -1e30f : static_cast<float>(Normal(i)); }},
  };
  return matrices;
}

struct Shape {
  int64_t cols;
  std::vector<AbsMaxMinClass> classes;
};

std::vector<Shape> Shapes() {
  std::vector<Shape> shapes = {
      {1, {{1, 1, 1, 2, 0}}},    {1, {{1, 1, 8, 8, 0}}},
      {40, {{40, 1, 3, 4, 0}}},  {40, {{40, 40, 3, 4, 0}}},
      {40, {{40, 40, 1, 2, 0}}}, {60, {{10, 10, 1, 5, 3}, {20, 7, 2, 3, 1}, {30, 1, 4, 2, 0}}},
  };
  for (int64_t hash_rows = 1; hash_rows <= kMaxHashRows; ++hash_rows) {
    for (int64_t bits = kMinBucketBits; bits <= kMaxBucketBits; ++bits) {
      shapes.push_back({77, {{77, 12, hash_rows, bits, 0}}});
    }
  }
  return shapes;
}

// Steps to try for a row: finer than its weights, about right, coarser, none.
std::vector<float> StepsFor(const std::vector<float>& weights) {
  float largest = 0.0f;
  for (const float weight : weights) largest = std::max(largest, std::abs(weight));
  std::vector<float> steps = {0.0f, 1e-45f};
  for (const float factor : {1.0f / 300, 1.0f / 7, 0.1f, 1.0f / 128, 1.0f}) {
    steps.push_back(std::min(largest * factor, 1e33f));
  }
  return steps;
}

TEST(AbsMaxMinSketchTest, UnderestimatesEveryMatrix) {
  for (const Matrix& matrix : Matrices()) {
    for (const Shape& shape : Shapes()) {
      const LinearSite site = ExampleSite(3, shape.cols);
      std::vector<float> weights;
      for (int64_t i = 0; i < site.num_weights(); ++i) weights.push_back(matrix.weight(i));
      for (const float step : StepsFor(weights)) {
        const AbsMaxMinLayout layout(1, site.name, shape.classes, {});
        std::vector<int8_t> levels(static_cast<size_t>(3 * layout.num_buckets()));
        for (int64_t row = 0; row < 3; ++row) {
          InsertRow(layout, weights.data() + row * shape.cols, step,
                    levels.data() + row * layout.num_buckets());
        }
        // As anybody will read it: packed, the steps rounded to what is stored.
        const auto linear =
            AbsMaxMinLinear::FromParts(site, layout, levels, std::vector<float>(3, step));
        std::vector<float> decoded(weights.size());
        linear->DecodeRows(0, 3, decoded.data());
        for (size_t i = 0; i < weights.size(); ++i) {
          ASSERT_LE(std::abs(decoded[i]), std::abs(weights[i]))
              << matrix.name << ", " << shape.cols << " columns, " << shape.classes[0].hash_rows
              << " hash rows, " << shape.classes[0].bits << " bits, step " << step << ", weight "
              << i;
        }
      }
    }
  }
}

TEST(AbsMaxMinSketchTest, ABucketKeepsTheWeightOfLeastMagnitude) {
  const AbsMaxMinLayout layout(1, "site", {{50, 7, 3, 4, 0}}, {});
  const std::vector<float> weights = RandomFloats(50, 2);
  std::vector<float> minima(21);
  InsertMinima(layout, 0, weights.data(), minima.data());
  for (int64_t hash_row = 0; hash_row < 3; ++hash_row) {
    const auto buckets = layout.BucketsOf(0, hash_row);
    for (int32_t bucket = 7 * static_cast<int32_t>(hash_row);
         bucket < 7 * static_cast<int32_t>(hash_row + 1); ++bucket) {
      float expected = std::numeric_limits<float>::infinity();
      for (size_t place = 0; place < 50; ++place) {
        const float weight = weights[static_cast<size_t>(layout.columns()[place])];
        if (buckets[place] == bucket && std::abs(weight) < std::abs(expected)) expected = weight;
      }
      EXPECT_EQ(minima[static_cast<size_t>(bucket)], expected);
    }
  }
}

TEST(AbsMaxMinSketchTest, AQueryTakesTheLargestOfItsBuckets) {
  const AbsMaxMinLayout layout(1, "site", {{30, 4, 3, 4, 2}}, {});
  std::vector<int8_t> levels;
  for (int i = 0; i < 12; ++i) levels.push_back(static_cast<int8_t>(i * 5 % 16 - 8));
  std::vector<float> decoded(30);
  QueryRow(layout, levels.data(), decoded.data());
  for (size_t place = 0; place < 30; ++place) {
    int expected = 0;
    for (int64_t hash_row = 0; hash_row < 3; ++hash_row) {
      const int level = levels[static_cast<size_t>(layout.BucketsOf(0, hash_row)[place])];
      if (std::abs(level) > std::abs(expected)) expected = level;
    }
    EXPECT_EQ(decoded[static_cast<size_t>(layout.columns()[place])], 4.0f * expected);
  }
}

TEST(AbsMaxMinSketchTest, TheFirstHashRowWinsTies) {
  const AbsMaxMinLayout layout(1, "site", {{5, 1, 3, 4, 0}}, {});
  std::vector<float> decoded(5);
  for (const std::vector<int8_t>& levels :
       {std::vector<int8_t>{3, -3, 3}, {-3, 3, 2}, {-2, 3, -3}, {-2, -3, 3}}) {
    QueryRow(layout, levels.data(), decoded.data());
    const float expected = std::abs(levels[0]) == 3 ? levels[0] : levels[1];
    for (const float value : decoded) EXPECT_EQ(value, expected);
  }
}

TEST(AbsMaxMinSketchTest, AColumnWithABucketOfItsOwnIsOnlyQuantized) {
  const AbsMaxMinLayout layout(1, "site", {{64, 64, 1, 8, 0}}, {});
  const std::vector<float> weights = RandomFloats(64, 3);
  constexpr float kStep = 1.0f / 32;
  std::vector<int8_t> levels(64);
  std::vector<float> decoded(64);
  InsertRow(layout, weights.data(), kStep, levels.data());
  QueryRow(layout, levels.data(), decoded.data());
  for (size_t i = 0; i < 64; ++i) {
    ASSERT_LT(std::abs(weights[i]), 127 * kStep);
    EXPECT_EQ(decoded[i], std::trunc(weights[i] / kStep));
  }
}

TEST(AbsMaxMinSketchTest, QuantizesTowardZeroWithinTheLevels) {
  const AbsMaxMinClass sketch_class = {1, 1, 1, 3, 1};
  const auto level = [&](float value) { return int{QuantizeLevel(sketch_class, value, 0.5f)}; };
  EXPECT_EQ(level(0.99f), 0);
  EXPECT_EQ(level(-0.99f), 0);
  EXPECT_EQ(level(1.0f), 1);
  EXPECT_EQ(level(-2.9f), -2);
  EXPECT_EQ(level(1e30f), 3);
  EXPECT_EQ(level(-1e30f), -4);
  EXPECT_EQ(QuantizeLevel(sketch_class, 1.0f, 0.0f), 0);
}

}  // namespace
}  // namespace ultrasketch
