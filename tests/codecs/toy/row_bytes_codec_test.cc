// What every codec's test shows, of the toy codec of docs/extending.md.
#include "tests/codecs/toy/row_bytes_codec.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "engine/base/random.h"
#include "engine/base/thread_pool.h"
#include "tests/codecs/memory_source.h"

namespace ultrasketch {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr const char* kSite = "model.layers.3.mlp_output";

LinearSite SiteOf(int64_t rows, int64_t cols) {
  LinearSite site;
  site.name = kSite;
  site.kind = SiteKind::kMlpOutput;
  site.layer = 3;
  site.rows = rows;
  site.cols = cols;
  site.members = {{"model.layers.3.mlp.down_proj", rows, false}};
  return site;
}

std::vector<float> Normals(int64_t count, uint64_t stream) {
  std::vector<float> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<float>(NormalDouble(1, stream, i));
  }
  return values;
}

struct Shape {
  int64_t rows;
  int64_t cols;
};

// Awkward shapes: fewer rows than threads, one column, no multiple of anything.
class RowBytesTest : public ::testing::TestWithParam<Shape> {
 protected:
  RowBytesTest()
      : rows_(GetParam().rows),
        cols_(GetParam().cols),
        weights_(Normals(rows_ * cols_, 1)),
        encoded_(RowBytesLinear::Encode(SiteOf(rows_, cols_), weights_)) {}

  std::vector<float> Decoded(const EncodedLinear& encoded) const {
    std::vector<float> decoded(weights_.size());
    encoded.DecodeRows(0, rows_, decoded.data());
    return decoded;
  }

  const int64_t rows_;
  const int64_t cols_;
  const std::vector<float> weights_;
  const std::unique_ptr<RowBytesLinear> encoded_;
};

INSTANTIATE_TEST_SUITE_P(Shapes, RowBytesTest,
                         ::testing::Values(Shape{1, 1}, Shape{3, 17}, Shape{33, 64}, Shape{8, 5}));

TEST_P(RowBytesTest, WhatIsStoredIsLoadedAsItWas) {
  MemorySource source;
  for (const NamedTensor& tensor : encoded_->StoredTensors()) source.Set(tensor);
  const auto loaded = GetRowBytesCodec().Load(SiteOf(rows_, cols_), source, nullptr);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(Decoded(**loaded), Decoded(*encoded_));
  EXPECT_EQ((*loaded)->stored_bytes(), rows_ * cols_ + 4 * rows_);
}

TEST_P(RowBytesTest, DecodingIsCloseToWhatWasEncoded) {
  const std::vector<float> decoded = Decoded(*encoded_);
  for (size_t i = 0; i < decoded.size(); ++i) EXPECT_NEAR(decoded[i], weights_[i], 0.02);
}

TEST_P(RowBytesTest, RowsAreDecodedByThemselves) {
  const std::vector<float> all = Decoded(*encoded_);
  std::vector<float> row(static_cast<size_t>(cols_));
  for (int64_t i = 0; i < rows_; ++i) {
    encoded_->DecodeRows(i, 1, row.data());
    EXPECT_TRUE(std::equal(row.begin(), row.end(), all.begin() + i * cols_)) << i;
  }
}

TEST_P(RowBytesTest, ProductsAreThoseOfTheDecodedWeights) {
  constexpr int64_t kTokens = 5;
  const std::vector<float> decoded = Decoded(*encoded_);
  const std::vector<float> x = Normals(kTokens * cols_, 2);
  const auto linear = encoded_->PackForCpu();
  ThreadPool pool(2);
  std::vector<float> y(static_cast<size_t>(kTokens * rows_), 7.0f);
  linear->Multiply(x.data(), kTokens, /*accumulate=*/true, y.data(), pool);
  for (int64_t token = 0; token < kTokens; ++token) {
    for (int64_t row = 0; row < rows_; ++row) {
      double expected = 7;
      for (int64_t col = 0; col < cols_; ++col) {
        expected += double{decoded[static_cast<size_t>(row * cols_ + col)]} *
                    x[static_cast<size_t>(token * cols_ + col)];
      }
      EXPECT_NEAR(y[static_cast<size_t>(token * rows_ + row)], expected, 1e-4);
    }
  }
}

TEST_P(RowBytesTest, ATokensResultIsTheSameInEveryBatch) {
  constexpr int64_t kTokens = 9;
  const std::vector<float> x = Normals(kTokens * cols_, 3);
  const auto linear = encoded_->PackForCpu();
  ThreadPool one(1), several(3);
  std::vector<float> together(static_cast<size_t>(kTokens * rows_));
  linear->Multiply(x.data(), kTokens, /*accumulate=*/false, together.data(), several);
  std::vector<float> alone(static_cast<size_t>(rows_));
  for (int64_t token = 0; token < kTokens; ++token) {
    linear->Multiply(x.data() + token * cols_, 1, /*accumulate=*/false, alone.data(), one);
    EXPECT_TRUE(std::equal(alone.begin(), alone.end(), together.begin() + token * rows_)) << token;
  }
}

TEST(RowBytesCodecTest, RefusesWhatDoesNotAddUp) {
  const auto encoded = RowBytesLinear::Encode(SiteOf(4, 6), Normals(24, 1));
  const auto refusal = [&](const auto& damage) {
    MemorySource source;
    for (const NamedTensor& tensor : encoded->StoredTensors()) source.Set(tensor);
    damage(source);
    return GetRowBytesCodec().Load(SiteOf(4, 6), source, nullptr).status();
  };
  const std::string levels = absl::StrCat(kSite, ".levels"), scale = absl::StrCat(kSite, ".scale");

  const absl::Status missing = refusal([&](MemorySource& source) { source.Remove(levels); });
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.message()), HasSubstr(levels));

  const absl::Status shape = refusal([&](MemorySource& source) {
    source.view(levels).shape = {6, 4};
  });
  EXPECT_EQ(shape.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(shape.message()),
              AllOf(HasSubstr(levels), HasSubstr("[4, 6]"), HasSubstr("[6, 4]")));

  const absl::Status value = refusal([&](MemorySource& source) {
    source.Set(scale, DType::kF32, {4},
               std::vector<float>{1, 1, std::numeric_limits<float>::quiet_NaN(), 1});
  });
  EXPECT_EQ(value.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(value.message()), HasSubstr(scale));
}

}  // namespace
}  // namespace ultrasketch
