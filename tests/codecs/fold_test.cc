// The folding sketch's stored form: decoding, loading, refusals.
#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "engine/codecs/fold/fold_codec.h"
#include "engine/codecs/fold/fold_linear.h"
#include "tests/codecs/fold_examples.h"
#include "tests/codecs/memory_source.h"

namespace ultrasketch {
namespace {

using testing::AllOf;
using testing::HasSubstr;

const nlohmann::json kParameters = {{"quant_method", "ultrasketch"}, {"seed", 42}};

std::unique_ptr<FoldLinear> WithImportance(int64_t rows) {
  const LinearSite site = ExampleSite(rows, 27);
  std::vector<uint8_t> column_classes(27, 2);
  for (const size_t column : {0u, 5u, 26u}) column_classes[column] = 0;
  for (const size_t column : {1u, 2u, 3u, 7u, 12u, 20u}) column_classes[column] = 1;
  return ExampleFold(site,
                     FoldLayout(42, site.name, {{3, 1, 2}, {6, 2, 1}, {18, 3, 1}}, column_classes));
}

MemorySource SourceOf(const EncodedLinear& linear) {
  MemorySource source;
  for (const NamedTensor& tensor : linear.StoredTensors()) source.Set(tensor);
  return source;
}

TEST(FoldTest, DecodesToScaleTimesBitTimesSign) {
  for (const int64_t rows : {1, 2, 19}) {
    for (const auto& [cols, buckets] :
         {std::pair<int64_t, int64_t>{1, 1}, {3, 2}, {3, 1}, {65, 9}, {100, 100}, {384, 176}}) {
      const auto linear = ExampleFold(rows, cols, buckets);
      const FoldLayout& layout = linear->layout();
      std::vector<float> decoded(static_cast<size_t>(rows * cols));
      linear->DecodeRows(0, rows, decoded.data());
      const std::vector<float> scales = linear->Scales();
      for (int64_t row = 0; row < rows; ++row) {
        for (int64_t column = 0; column < cols; ++column) {
          // One plane: group and bucket are the same.
          const int64_t bucket = layout.group_of_column()[static_cast<size_t>(column)];
          const uint8_t byte = linear->bits()[row * linear->row_bytes() + bucket / 8];
          const float bit = (byte >> (bucket % 8) & 1) != 0 ? 1.0f : -1.0f;
          ASSERT_EQ(decoded[static_cast<size_t>(row * cols + column)],
                    scales[static_cast<size_t>(row)] * bit *
                        layout.sign_of_column()[static_cast<size_t>(column)]);
        }
      }
      std::vector<float> last_row(static_cast<size_t>(cols));
      linear->DecodeRows(rows - 1, 1, last_row.data());
      EXPECT_TRUE(std::equal(last_row.begin(), last_row.end(), decoded.end() - cols));
    }
  }
}

TEST(FoldTest, DecodesTheLevelsOfSeveralPlanes) {
  const LinearSite site = ExampleSite(1, 4);
  const FoldLayout layout(42, site.name, {{2, 1, 3}, {2, 1, 1}}, {0, 0, 1, 1});
  // Group 0: +, -, + is level 4 - 2 + 1; group 1: -, -, - is -7; groups 2 and 3: +, -.
  // Buckets: planes 0, 1, 2 of groups 0 and 1, then groups 2 and 3.
  const std::vector<float> scales = {2.0f};
  const auto linear = FoldLinear::FromParts(site, layout, {0b01010001}, scales);
  std::vector<float> decoded(4);
  linear->DecodeRows(0, 1, decoded.data());
  const std::vector<float> by_group = {2 * 3 * 47.0f / 128, 2 * -7 * 47.0f / 128, 2, -2};
  for (size_t place = 0; place < 4; ++place) {
    const auto column = static_cast<size_t>(layout.columns_by_group()[place]);
    EXPECT_FLOAT_EQ(decoded[column], by_group[place] * layout.sign_of_column()[column]) << place;
  }
}

TEST(FoldTest, LoadsWhatItStores) {
  for (const auto& linear :
       {ExampleFold(5, 33, 14), ExampleFold(1, 3, 2), ExampleFold(3, 11, 29), WithImportance(4)}) {
    const LinearSite& site = linear->site();
    const MemorySource source = SourceOf(*linear);
    const auto loaded = GetFoldCodec().Load(site, source, kParameters);
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    EXPECT_EQ((*loaded)->codec_name(), "fold");
    EXPECT_EQ((*loaded)->stored_bytes(), linear->stored_bytes());
    std::vector<float> expected(static_cast<size_t>(site.num_weights()));
    std::vector<float> found(expected.size());
    linear->DecodeRows(0, site.rows, expected.data());
    (*loaded)->DecodeRows(0, site.rows, found.data());
    EXPECT_EQ(found, expected);
  }
}

TEST(FoldTest, PredictsItsSize) {
  const auto even = ExampleFold(7, 100, 42);
  EXPECT_EQ(even->stored_bytes(), FoldStoredBytes(7, 100, 42, 2, false));
  const auto ranked = WithImportance(4);
  EXPECT_EQ(ranked->stored_bytes(), FoldStoredBytes(4, 27, 15, 3, true));
}

TEST(FoldTest, KeepsScalesOutsideTheRangeOfHalfPrecision) {
  const LinearSite site = ExampleSite(2, 8);
  const FoldLayout layout(42, site.name, {{8, 2, 1}}, {});
  const std::vector<float> scales = {1e-7f, 3.0f};
  const auto linear = FoldLinear::FromParts(site, layout, {0, 15}, scales);
  EXPECT_NEAR(linear->Scales()[0], 1e-7f, 1e-9f);
  EXPECT_EQ(linear->Scales()[1], 3.0f);
}

struct Refusal {
  const char* name;
  std::function<void(MemorySource&)> damage;
  std::vector<std::string> message_parts;
};

void PrintTo(const Refusal& refusal, std::ostream* stream) { *stream << refusal.name; }

class FoldRefusalTest : public testing::TestWithParam<Refusal> {};

TEST_P(FoldRefusalTest, NamesFileTensorExpectedAndFound) {
  const auto linear = WithImportance(4);
  MemorySource source = SourceOf(*linear);
  ASSERT_TRUE(GetFoldCodec().Load(linear->site(), source, kParameters).ok());
  GetParam().damage(source);
  const auto loaded = GetFoldCodec().Load(linear->site(), source, kParameters);
  ASSERT_FALSE(loaded.ok());
  EXPECT_THAT(loaded.status().code(),
              testing::AnyOf(absl::StatusCode::kDataLoss, absl::StatusCode::kNotFound));
  EXPECT_THAT(std::string(loaded.status().message()), HasSubstr("memory.safetensors"));
  for (const std::string& part : GetParam().message_parts) {
    EXPECT_THAT(std::string(loaded.status().message()), HasSubstr(part));
  }
}

const std::string kPrefix = "model.layers.3.mlp_input";

INSTANTIATE_TEST_SUITE_P(
    All, FoldRefusalTest,
    testing::Values(
        Refusal{"NoBits", [](MemorySource& s) { s.Remove(kPrefix + ".bits"); }, {".bits"}},
        Refusal{"NoScale", [](MemorySource& s) { s.Remove(kPrefix + ".scale"); }, {".scale"}},
        Refusal{"NoClasses", [](MemorySource& s) { s.Remove(kPrefix + ".classes"); }, {".classes"}},
        Refusal{"BitsOfAnotherType",
                [](MemorySource& s) { s.view(kPrefix + ".bits").dtype = DType::kI8; },
                {".bits", "U8", "I8"}},
        Refusal{"BitsTooShort",
                [](MemorySource& s) {
                  s.view(kPrefix + ".bits").shape = {4, 1};
                },
                {".bits", "[4, 2]", "[4, 1]"}},
        Refusal{"RowMissing",
                [](MemorySource& s) {
                  s.view(kPrefix + ".bits").shape = {3, 2};
                },
                {".bits", "[4, 2]", "[3, 2]"}},
        Refusal{"BitAfterTheLastBucket",
                [](MemorySource& s) { s.bytes(kPrefix + ".bits")[5] |= 0x80; },
                {".bits", "row 2"}},
        Refusal{"ScaleIsNaN",
                [](MemorySource& s) { s.bytes(kPrefix + ".scale")[3] = 0x7e; },
                {".scale"}},
        Refusal{"ScaleIsNegative",
                [](MemorySource& s) { s.bytes(kPrefix + ".scale")[5] |= 0x80; },
                {".scale", "row 2", "found -"}},
        Refusal{"ScaleTooShort",
                [](MemorySource& s) { s.view(kPrefix + ".scale").shape = {3}; },
                {".scale", "[4]", "[3]"}},
        Refusal{"ClassesDoNotCoverTheColumns",
                [](MemorySource& s) { s.bytes(kPrefix + ".classes")[24] = 15; },
                {".classes", "27 columns in all, found 24"}},
        Refusal{"ClassOfNoColumns",
                [](MemorySource& s) { s.bytes(kPrefix + ".classes")[0] = 0; },
                {".classes", "class 0"}},
        Refusal{"ClassOfHugeBuckets",
                [](MemorySource& s) { s.bytes(kPrefix + ".classes")[7] = 0xff; },
                {".classes", "class 0", "columns a group"}},
        Refusal{"ClassOfHugeExtent",
                [](MemorySource& s) { s.bytes(kPrefix + ".classes")[15] = 0xff; },
                {".classes", "class 1"}},
        Refusal{"NoClassAtAll",
                [](MemorySource& s) {
                  s.view(kPrefix + ".classes").shape = {0, 3};
                },
                {".classes", "found 0"}},
        Refusal{"TooManyClasses",
                [](MemorySource& s) {
                  s.Set(kPrefix + ".classes", DType::kU32, {300, 3}, std::vector<uint32_t>(900, 1));
                },
                {".classes", "found 300"}},
        Refusal{"ColumnClassesTooShort",
                [](MemorySource& s) { s.view(kPrefix + ".column_class").shape = {6}; },
                {".column_class", "[7]", "[6]"}},
        Refusal{"ColumnOfNoClass",
                [](MemorySource& s) { s.bytes(kPrefix + ".column_class")[0] |= 0x03; },
                {".column_class", "column 0", "found 3"}},
        Refusal{"ColumnOfAnotherClass",
                [](MemorySource& s) { s.bytes(kPrefix + ".column_class")[0] ^= 0x01; },
                {".column_class", "class 0", "found 2"}},
        Refusal{"BitAfterTheLastColumn",
                [](MemorySource& s) { s.bytes(kPrefix + ".column_class")[6] |= 0x80; },
                {".column_class", "after the last column"}}),
    [](const testing::TestParamInfo<Refusal>& test) { return test.param.name; });

TEST(FoldTest, RefusesAMissingOrMalformedSeed) {
  const auto linear = ExampleFold(5, 33, 14);
  const MemorySource source = SourceOf(*linear);
  for (const nlohmann::json& parameters :
       {nlohmann::json(), nlohmann::json::array(), nlohmann::json::object(),
        nlohmann::json{{"seed", -1}}, nlohmann::json{{"seed", "42"}},
        nlohmann::json{{"seed", 1.5}}}) {
    const auto loaded = GetFoldCodec().Load(linear->site(), source, parameters);
    ASSERT_FALSE(loaded.ok()) << parameters;
    EXPECT_EQ(loaded.status().code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(std::string(loaded.status().message()),
                AllOf(HasSubstr("seed"), HasSubstr("model.layers.3.mlp_input")));
  }
}

}  // namespace
}  // namespace ultrasketch
