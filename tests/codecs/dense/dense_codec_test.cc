#include "engine/codecs/dense/dense_codec.h"

#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "engine/base/dtype.h"
#include "engine/base/random.h"
#include "engine/codecs/codec.h"
#include "tests/codecs/memory_source.h"

namespace ultrasketch {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int64_t kCols = 21;
constexpr const char* kQuery = "model.layers.2.self_attn.q_proj";
constexpr const char* kKey = "model.layers.2.self_attn.k_proj";
constexpr const char* kValue = "model.layers.2.self_attn.v_proj";

// Members of three types and uneven extents.
class DenseCodecTest : public ::testing::Test {
 protected:
  DenseCodecTest() {
    site_.name = "model.layers.2.attention_input";
    site_.layer = 2;
    site_.cols = kCols;
    site_.rows = 13 + 5 + 7;
    site_.members = {{kQuery, 13, false}, {kKey, 5, false}, {kValue, 7, false}};
    Fill(kQuery, DType::kBF16, 13, 1);
    Fill(kKey, DType::kF32, 5, 2);
    Fill(kValue, DType::kF16, 7, 3);
  }

  void Fill(const std::string& member, DType dtype, int64_t rows, uint64_t stream) {
    std::vector<float> values;
    std::vector<uint16_t> halves;
    for (int64_t i = 0; i < rows * kCols; ++i) {
      const auto value = static_cast<float>(NormalDouble(1, stream, static_cast<uint64_t>(i)));
      if (dtype == DType::kF32) {
        values.push_back(value);
        continue;
      }
      halves.push_back(dtype == DType::kF16 ? FloatToHalf(value) : FloatToBf16(value));
      values.push_back(dtype == DType::kF16 ? HalfToFloat(halves.back())
                                            : Bf16ToFloat(halves.back()));
    }
    if (dtype == DType::kF32) {
      source_.Set(member + ".weight", dtype, {rows, kCols}, values);
    } else {
      source_.Set(member + ".weight", dtype, {rows, kCols}, halves);
    }
    weights_.insert(weights_.end(), values.begin(), values.end());
  }

  std::unique_ptr<EncodedLinear> MustLoad() {
    auto loaded = GetDenseCodec().Load(site_, source_, nullptr);
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    return *std::move(loaded);
  }

  void ExpectRefused(absl::StatusCode code, const std::string& tensor,
                     const std::vector<std::string>& parts) {
    const absl::Status status = GetDenseCodec().Load(site_, source_, nullptr).status();
    EXPECT_EQ(status.code(), code) << status;
    const std::string message(status.message());
    EXPECT_THAT(message, AllOf(HasSubstr("memory.safetensors"), HasSubstr(tensor)));
    for (const std::string& part : parts) EXPECT_THAT(message, HasSubstr(part));
  }

  LinearSite site_;
  MemorySource source_;
  std::vector<float> weights_;  // of all members, in order
};

TEST_F(DenseCodecTest, IsInTheRegistryAsDense) { EXPECT_EQ(GetDenseCodec().name(), "dense"); }

TEST_F(DenseCodecTest, StoresItsMembersAsTheyAre) {
  const auto linear = MustLoad();
  EXPECT_EQ(linear->codec_name(), "dense");
  EXPECT_EQ(linear->site().name, site_.name);
  const std::vector<NamedTensor> stored = linear->StoredTensors();
  ASSERT_EQ(stored.size(), 3u);
  const char* const members[] = {kQuery, kKey, kValue};
  for (size_t i = 0; i < stored.size(); ++i) {
    const std::string name = std::string(members[i]) + ".weight";
    EXPECT_EQ(stored[i].name, name);
    EXPECT_EQ(stored[i].view.data, source_.Find(name)->data);
  }
  EXPECT_EQ(linear->stored_bytes(), kCols * (13 * 2 + 5 * 4 + 7 * 2));
}

TEST_F(DenseCodecTest, DecodesEveryRangeOfRowsAcrossItsMembers) {
  const auto linear = MustLoad();
  for (int64_t first = 0; first <= site_.rows; ++first) {
    for (int64_t count = 0; first + count <= site_.rows; ++count) {
      std::vector<float> rows(static_cast<size_t>(count * kCols + 1), -7.0f);
      linear->DecodeRows(first, count, rows.data());
      EXPECT_EQ(rows.back(), -7.0f);
      rows.pop_back();
      const auto begin = weights_.begin() + first * kCols;
      ASSERT_EQ(rows, std::vector<float>(begin, begin + count * kCols));
    }
  }
}

TEST_F(DenseCodecTest, MultipliesMembersOfMixedTypesOnAnyNumberOfThreads) {
  const auto linear = MustLoad();
  const auto packed = linear->PackForCpu();
  ASSERT_EQ(packed->rows(), site_.rows);
  ASSERT_EQ(packed->cols(), kCols);
  ASSERT_EQ(packed->prepared_width(), kCols);
  EXPECT_EQ(packed->resident_bytes(), linear->stored_bytes());
  constexpr int64_t kTokens = 11;
  std::vector<float> x;
  for (uint64_t i = 0; i < kTokens * kCols; ++i) {
    x.push_back(static_cast<float>(NormalDouble(1, 9, i)));
  }
  std::vector<float> prepared(x.size());
  for (int64_t token = 0; token < kTokens; ++token) {
    packed->PrepareInput(x.data() + token * kCols, prepared.data() + token * kCols);
    packed->PrepareInput(prepared.data() + token * kCols, prepared.data() + token * kCols);
  }
  std::vector<float> first_result;
  for (const int num_threads : {1, 2, 3, 5}) {
    ThreadPool pool(num_threads);
    std::vector<float> y(static_cast<size_t>(kTokens * site_.rows), -7.0f);
    packed->Multiply(prepared.data(), kTokens, /*accumulate=*/false, y.data(), pool);
    if (first_result.empty()) first_result = y;
    EXPECT_EQ(y, first_result) << num_threads << " threads";
    for (int64_t token = 0; token < kTokens; ++token) {
      for (int64_t row = 0; row < site_.rows; ++row) {
        double expected = 0;
        for (int64_t k = 0; k < kCols; ++k) {
          expected += double{weights_[static_cast<size_t>(row * kCols + k)]} *
                      double{x[static_cast<size_t>(token * kCols + k)]};
        }
        ASSERT_NEAR(y[static_cast<size_t>(token * site_.rows + row)], expected, 1e-5);
      }
    }
    // One token at a time and added: the same bits on top of what is there.
    std::vector<float> sums(y.size(), 0.5f);
    for (int64_t token = 0; token < kTokens; ++token) {
      packed->Multiply(prepared.data() + token * kCols, 1, /*accumulate=*/true,
                       sums.data() + token * site_.rows, pool);
    }
    for (size_t i = 0; i < y.size(); ++i) ASSERT_EQ(sums[i], 0.5f + y[i]);
    packed->Multiply(prepared.data(), 0, /*accumulate=*/false, nullptr, pool);
  }
}

TEST_F(DenseCodecTest, RefusesAMissingMember) {
  source_.Remove(std::string(kKey) + ".weight");
  ExpectRefused(absl::StatusCode::kNotFound, std::string(kKey) + ".weight", {"missing"});
}

TEST_F(DenseCodecTest, RefusesOtherTypes) {
  for (const DType dtype : {DType::kI32, DType::kU32, DType::kF64, DType::kI8, DType::kBool}) {
    source_.view(std::string(kKey) + ".weight").dtype = dtype;
    ExpectRefused(absl::StatusCode::kDataLoss, std::string(kKey) + ".weight",
                  {"BF16 or F16 or F32", "found " + std::string(DTypeName(dtype))});
  }
}

TEST_F(DenseCodecTest, RefusesOtherShapes) {
  const std::string name = std::string(kValue) + ".weight";
  for (const std::vector<int64_t>& shape :
       std::vector<std::vector<int64_t>>{{kCols, 7}, {7, kCols - 1}, {7 * kCols}, {1, 7, kCols}}) {
    source_.view(name).shape = shape;
    ExpectRefused(absl::StatusCode::kDataLoss, name,
                  {"expected shape [7, 21]", "found " + ShapeString(shape)});
  }
}

TEST_F(DenseCodecTest, RefusesWeightsThatAreNotFinite) {
  const std::string name = std::string(kQuery) + ".weight";
  uint8_t* bytes = source_.bytes(name).data() + 2 * (3 * kCols + 4);
  for (const auto& [bits, word] :
       {std::pair{uint16_t{0x7fc0}, "NaN"}, std::pair{uint16_t{0xff81}, "NaN"},
        std::pair{uint16_t{0xff80}, "infinite"}}) {
    std::memcpy(bytes, &bits, 2);
    ExpectRefused(absl::StatusCode::kDataLoss, name, {"element 67", word});
  }
}

TEST_F(DenseCodecTest, LoadsBiasesWithZerosWhereAMemberHasNone) {
  EXPECT_TRUE(LoadBias(site_, source_)->empty());
  site_.members[1].has_bias = true;
  source_.Set(std::string(kKey) + ".bias", DType::kF32, {5}, std::vector<float>{1, 2, 3, 4, 5});
  const auto bias = LoadBias(site_, source_);
  ASSERT_TRUE(bias.ok()) << bias.status();
  std::vector<float> expected(25, 0.0f);
  for (int i = 0; i < 5; ++i) expected[static_cast<size_t>(13 + i)] = static_cast<float>(i + 1);
  EXPECT_EQ(*bias, expected);

  source_.view(std::string(kKey) + ".bias").shape = {1, 5};
  EXPECT_EQ(LoadBias(site_, source_).status().code(), absl::StatusCode::kDataLoss);
  source_.Set(std::string(kKey) + ".bias", DType::kF32, {5},
              std::vector<float>{1, 2, std::numeric_limits<float>::infinity(), 4, 5});
  EXPECT_THAT(std::string(LoadBias(site_, source_).status().message()),
              AllOf(HasSubstr("k_proj.bias"), HasSubstr("element 2 is infinite")));
  source_.Remove(std::string(kKey) + ".bias");
  EXPECT_EQ(LoadBias(site_, source_).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace ultrasketch
