// The AbsMaxMin sketch's stored form: decoding, loading, refusals.
#include <functional>
#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "engine/codecs/absmaxmin/absmaxmin_codec.h"
#include "engine/codecs/absmaxmin/absmaxmin_linear.h"
#include "engine/codecs/absmaxmin/absmaxmin_sketch.h"
#include "tests/codecs/absmaxmin/absmaxmin_examples.h"
#include "tests/codecs/memory_source.h"

namespace ultrasketch {
namespace {

using testing::AllOf;
using testing::HasSubstr;

const nlohmann::json kParameters = {{"quant_method", "ultrasketch"}, {"seed", 42}};
const std::string kPrefix = "model.layers.3.mlp_input";

MemorySource SourceOf(const EncodedLinear& linear) {
  MemorySource source;
  for (const NamedTensor& tensor : linear.StoredTensors()) source.Set(tensor);
  return source;
}

TEST(AbsMaxMinTest, DecodesToScaleTimesTheQuery) {
  const auto linear = ExampleWithImportance(9);
  const AbsMaxMinLayout& layout = linear->layout();
  std::vector<float> decoded(9 * 27);
  linear->DecodeRows(0, 9, decoded.data());
  const std::vector<float> scales = linear->Scales();
  for (int64_t row = 0; row < 9; ++row) {
    std::vector<int8_t> levels(static_cast<size_t>(layout.num_buckets()));
    linear->UnpackRow(row, levels.data());
    std::vector<float> expected(27);
    QueryRow(layout, levels.data(), expected.data());
    for (size_t column = 0; column < 27; ++column) {
      ASSERT_EQ(decoded[static_cast<size_t>(row) * 27 + column],
                scales[static_cast<size_t>(row)] * expected[column]);
    }
  }
  std::vector<float> last_row(27);
  linear->DecodeRows(8, 1, last_row.data());
  EXPECT_TRUE(std::equal(last_row.begin(), last_row.end(), decoded.end() - 27));
}

// engine/format/FORMAT.md has this example.
TEST(AbsMaxMinTest, PacksAsDocumented) {
  const LinearSite site = ExampleSite(1, 3);
  const AbsMaxMinLayout layout(42, site.name, {{1, 1, 1, 3, 2}, {2, 1, 2, 5, 0}}, {});
  const std::vector<int8_t> levels = {-3, 9, -16};
  const auto linear = AbsMaxMinLinear::FromParts(site, layout, levels, std::vector<float>{0.5f});
  const std::vector<NamedTensor> tensors = linear->StoredTensors();
  // 3 bits 101, 5 bits 01001, 5 bits 10000, from the least significant on.
  EXPECT_EQ(tensors[0].view.data[0], 0b01001101);
  EXPECT_EQ(tensors[0].view.data[1], 0b00010000);
  std::vector<float> decoded(3);
  linear->DecodeRows(0, 1, decoded.data());
  EXPECT_EQ(decoded[static_cast<size_t>(layout.columns()[0])], -6.0f);
  EXPECT_EQ(decoded[static_cast<size_t>(layout.columns()[1])], -8.0f);
  EXPECT_EQ(decoded[static_cast<size_t>(layout.columns()[2])], -8.0f);
}

TEST(AbsMaxMinTest, LoadsWhatItStores) {
  std::vector<std::unique_ptr<AbsMaxMinLinear>> examples;
  examples.push_back(ExampleSketch(1, 1, {{1, 1, 1, 2, 0}}));
  examples.push_back(ExampleWithImportance(4));
  for (int64_t bits = kMinBucketBits; bits <= kMaxBucketBits; ++bits) {
    examples.push_back(ExampleSketch(5, 33, {{33, 7, 3, bits, 1}}));
  }
  for (const auto& linear : examples) {
    const LinearSite& site = linear->site();
    const MemorySource source = SourceOf(*linear);
    const auto loaded = GetAbsMaxMinCodec().Load(site, source, kParameters);
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    EXPECT_EQ((*loaded)->codec_name(), "absmaxmin");
    EXPECT_EQ((*loaded)->stored_bytes(), linear->stored_bytes());
    std::vector<float> expected(static_cast<size_t>(site.num_weights()));
    std::vector<float> found(expected.size());
    linear->DecodeRows(0, site.rows, expected.data());
    (*loaded)->DecodeRows(0, site.rows, found.data());
    EXPECT_EQ(found, expected);
  }
}

TEST(AbsMaxMinTest, PredictsItsSize) {
  const auto even = ExampleSketch(7, 100, {{100, 21, 3, 3, 0}});
  EXPECT_EQ(even->stored_bytes(), AbsMaxMinStoredBytes(7, 100, even->layout().classes(), false));
  EXPECT_EQ(even->stored_bytes(), 7 * (24 + 2) + 20);
  const auto ranked = ExampleWithImportance(4);
  EXPECT_EQ(ranked->stored_bytes(), AbsMaxMinStoredBytes(4, 27, ranked->layout().classes(), true));
}

TEST(AbsMaxMinTest, RoundsScalesTowardZero) {
  const LinearSite site = ExampleSite(3, 8);
  const AbsMaxMinLayout layout(42, site.name, {{8, 1, 1, 2, 0}}, {});
  const std::vector<int8_t> levels(3, 1);
  for (const std::vector<float>& scales :
       {std::vector<float>{1.0f + 0x1.ffep-11f, 0.1f, 65504.0f}, {1e-7f, 3.99999f, 1e38f}}) {
    const auto linear = AbsMaxMinLinear::FromParts(site, layout, levels, scales);
    for (size_t row = 0; row < 3; ++row) {
      EXPECT_LE(linear->Scales()[row], scales[row]);
      EXPECT_GT(linear->Scales()[row], 0.99f * scales[row]);
    }
  }
}

struct Refusal {
  const char* name;
  std::function<void(MemorySource&)> damage;
  std::vector<std::string> message_parts;
};

void PrintTo(const Refusal& refusal, std::ostream* stream) { *stream << refusal.name; }

class AbsMaxMinRefusalTest : public testing::TestWithParam<Refusal> {};

TEST_P(AbsMaxMinRefusalTest, NamesFileTensorExpectedAndFound) {
  const auto linear = ExampleWithImportance(4);
  MemorySource source = SourceOf(*linear);
  ASSERT_TRUE(GetAbsMaxMinCodec().Load(linear->site(), source, kParameters).ok());
  GetParam().damage(source);
  const auto loaded = GetAbsMaxMinCodec().Load(linear->site(), source, kParameters);
  ASSERT_FALSE(loaded.ok());
  EXPECT_THAT(loaded.status().code(),
              testing::AnyOf(absl::StatusCode::kDataLoss, absl::StatusCode::kNotFound));
  EXPECT_THAT(std::string(loaded.status().message()), HasSubstr("memory.safetensors"));
  for (const std::string& part : GetParam().message_parts) {
    EXPECT_THAT(std::string(loaded.status().message()), HasSubstr(part));
  }
}

// Damage to a byte of the classes' numbers.
std::function<void(MemorySource&)> ClassByte(size_t class_index, size_t entry, size_t byte,
                                             uint8_t value) {
  return [=](MemorySource& s) {
    s.bytes(kPrefix + ".classes")[class_index * 20 + entry * 4 + byte] = value;
  };
}

INSTANTIATE_TEST_SUITE_P(
    All, AbsMaxMinRefusalTest,
    testing::Values(
        Refusal{"NoSketch", [](MemorySource& s) { s.Remove(kPrefix + ".sketch"); }, {".sketch"}},
        Refusal{"NoScale", [](MemorySource& s) { s.Remove(kPrefix + ".scale"); }, {".scale"}},
        Refusal{"NoClasses", [](MemorySource& s) { s.Remove(kPrefix + ".classes"); }, {".classes"}},
        Refusal{"SketchOfAnotherType",
                [](MemorySource& s) { s.view(kPrefix + ".sketch").dtype = DType::kI8; },
                {".sketch", "U8", "I8"}},
        Refusal{"SketchTooShort",
                [](MemorySource& s) {
                  s.view(kPrefix + ".sketch").shape = {4, 7};
                },
                {".sketch", "[4, 8]", "[4, 7]"}},
        Refusal{"RowMissing",
                [](MemorySource& s) {
                  s.view(kPrefix + ".sketch").shape = {3, 8};
                },
                {".sketch", "[4, 8]", "[3, 8]"}},
        Refusal{"BitAfterTheLastBucket",
                [](MemorySource& s) { s.bytes(kPrefix + ".sketch")[23] |= 0x80; },
                {".sketch", "row 2"}},
        Refusal{"ScaleIsNaN",
                [](MemorySource& s) { s.bytes(kPrefix + ".scale")[3] = 0x7e; },
                {".scale"}},
        Refusal{"ScaleIsNegative",
                [](MemorySource& s) { s.bytes(kPrefix + ".scale")[5] |= 0x80; },
                {".scale", "row 2", "found -"}},
        Refusal{"ScaleOverflows",
                [](MemorySource& s) {
                  s.Set(kPrefix + ".scale", DType::kBF16, {4},
                        std::vector<uint16_t>{0x3f80, 0x7f7f, 0x3f80, 0x3f80});
                },
                {".scale", "row 1", "finite times 32"}},
        Refusal{"ScaleTooShort",
                [](MemorySource& s) { s.view(kPrefix + ".scale").shape = {3}; },
                {".scale", "[4]", "[3]"}},
        Refusal{"ClassesDoNotCoverTheColumns",
                ClassByte(2, 0, 0, 15),
                {".classes", "27 columns in all, found 24"}},
        Refusal{"ClassOfNoColumns", ClassByte(0, 0, 0, 0), {".classes", "class 0"}},
        Refusal{"ClassOfHugeExtent", ClassByte(1, 0, 3, 0xff), {".classes", "class 1"}},
        Refusal{"ClassWithoutBuckets", ClassByte(1, 1, 0, 0), {".classes", "class 1", "buckets"}},
        Refusal{"ClassOfTooManyBuckets",
                ClassByte(1, 1, 3, 0xff),
                {".classes", "class 1", "1 to 6 buckets"}},
        Refusal{"ClassOfNoHashRow", ClassByte(1, 2, 0, 0), {".classes", "class 1", "hash rows"}},
        Refusal{"ClassOfManyHashRows", ClassByte(2, 2, 2, 9), {".classes", "class 2", "hash rows"}},
        Refusal{"ClassOfOneBit", ClassByte(0, 3, 0, 1), {".classes", "class 0", "bits a bucket"}},
        Refusal{
            "ClassOfManyBits", ClassByte(0, 3, 0, 32), {".classes", "class 0", "bits a bucket"}},
        Refusal{"ClassOfHugeUnit",
                ClassByte(2, 4, 0, 200),
                {".classes", "class 2", "unit exponent", "found 200"}},
        Refusal{"NoClassAtAll",
                [](MemorySource& s) {
                  s.view(kPrefix + ".classes").shape = {0, 5};
                },
                {".classes", "found 0"}},
        Refusal{"ClassesOfAnotherWidth",
                [](MemorySource& s) {
                  s.view(kPrefix + ".classes").shape = {5, 3};
                },
                {".classes", "[5, 3]"}},
        Refusal{
            "TooManyClasses",
            [](MemorySource& s) {
              s.Set(kPrefix + ".classes", DType::kU32, {300, 5}, std::vector<uint32_t>(1500, 1));
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

TEST(AbsMaxMinTest, RefusesAMissingOrMalformedSeed) {
  const auto linear = ExampleSketch(5, 33, {{33, 7, 3, 2, 0}});
  const MemorySource source = SourceOf(*linear);
  for (const nlohmann::json& parameters :
       {nlohmann::json(), nlohmann::json::array(), nlohmann::json::object(),
        nlohmann::json{{"seed", -1}}, nlohmann::json{{"seed", "42"}},
        nlohmann::json{{"seed", 1.5}}}) {
    const auto loaded = GetAbsMaxMinCodec().Load(linear->site(), source, parameters);
    ASSERT_FALSE(loaded.ok()) << parameters;
    EXPECT_EQ(loaded.status().code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(std::string(loaded.status().message()),
                AllOf(HasSubstr("seed"), HasSubstr("model.layers.3.mlp_input")));
  }
}

}  // namespace
}  // namespace ultrasketch
