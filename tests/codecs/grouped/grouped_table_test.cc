// The stored form: what it decodes to, and what is refused.
#include "engine/codecs/grouped/grouped_table.h"

#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/codecs/grouped/grouped_examples.h"
#include "tests/codecs/memory_source.h"

namespace ultrasketch {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kValues[] = "model.embed_tokens.quantized";
constexpr char kScale[] = "model.embed_tokens.scale";

MemorySource SourceOf(const GroupedTable& table) {
  MemorySource source;
  for (const NamedTensor& tensor : table.StoredTensors()) source.Set(tensor);
  return source;
}

TEST(GroupedTableTest, Int8IsTheIntegerTimesItsGroupsScale) {
  MemorySource source;
  std::vector<int8_t> values(2 * 66, 0);
  values[0] = 127;
  values[63] = -128;
  values[64] = 3;
  values[66 + 65] = -1;
  source.Set(kValues, DType::kI8, {2, 66}, values);
  source.Set<uint16_t>(
      kScale, DType::kBF16, {2, 2},
      {FloatToBf16(0.5f), FloatToBf16(2.0f), FloatToBf16(0.0f), FloatToBf16(8.0f)});
  const auto table = GroupedTable::Load(TableSite(2, 66), GroupedType::kInt8, source);
  ASSERT_TRUE(table.ok()) << table.status();
  std::vector<float> rows(2 * 66);
  (*table)->DecodeRows(0, 2, rows.data());
  EXPECT_EQ(rows[0], 63.5f);
  EXPECT_EQ(rows[63], -64.0f);
  EXPECT_EQ(rows[64], 6.0f);
  EXPECT_EQ(rows[66 + 65], -8.0f);
  std::vector<float> second(66);
  (*table)->DecodeRows(1, 1, second.data());
  EXPECT_EQ(second, std::vector<float>(rows.begin() + 66, rows.end()));
}

TEST(GroupedTableTest, Int4HasTheEvenColumnInTheLowHalf) {
  MemorySource source;
  source.Set<uint8_t>(kValues, DType::kU8, {1, 3}, {0xf1, 0x87, 0x02});
  source.Set<uint16_t>(kScale, DType::kF16, {1, 1}, {FloatToHalf(0.25f)});
  const auto table = GroupedTable::Load(TableSite(1, 5), GroupedType::kInt4, source);
  ASSERT_TRUE(table.ok()) << table.status();
  std::vector<float> row(5);
  (*table)->DecodeRows(0, 1, row.data());
  EXPECT_THAT(row, ElementsAre(0.25f, -0.25f, 1.75f, -2.0f, 0.5f));
}

TEST(GroupedTableTest, LoadsWhatItStores) {
  for (const GroupedType type : {GroupedType::kInt8, GroupedType::kInt4}) {
    const auto table = ExampleTable(7, 133, type, 1);
    const MemorySource source = SourceOf(*table);
    const auto loaded = GroupedTable::Load(TableSite(7, 133), type, source);
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    EXPECT_EQ((*loaded)->codec_name(), GroupedTypeName(type));
    EXPECT_EQ((*loaded)->stored_bytes(), 7 * (GroupedRowBytes(type, 133) + 2 * GroupsInRow(133)));
    std::vector<float> expected(7 * 133);
    std::vector<float> found(7 * 133);
    table->DecodeRows(0, 7, expected.data());
    (*loaded)->DecodeRows(0, 7, found.data());
    EXPECT_EQ(found, expected);
  }
}

TEST(GroupedTableTest, TypesHaveNames) {
  EXPECT_EQ(GroupedTypeFromName("int8"), GroupedType::kInt8);
  EXPECT_EQ(GroupedTypeFromName("int4"), GroupedType::kInt4);
  for (const char* name : {"", "int2", "INT8", "int8 ", "bf16"}) {
    EXPECT_EQ(GroupedTypeFromName(name), std::nullopt) << name;
  }
}

class GroupedTableRefusalTest : public ::testing::Test {
 protected:
  void ExpectRefused(absl::StatusCode code, const char* tensor, const char* expected,
                     const char* found) {
    const auto table = GroupedTable::Load(TableSite(4, 131), type_, source_);
    EXPECT_EQ(table.status().code(), code) << table.status();
    EXPECT_THAT(std::string(table.status().message()),
                AllOf(HasSubstr("memory.safetensors"), HasSubstr(tensor), HasSubstr(expected),
                      HasSubstr(found)));
  }
  void Use(GroupedType type) {
    type_ = type;
    source_ = MemorySource();
    const auto example = ExampleTable(4, 131, type, 2);
    for (const NamedTensor& tensor : example->StoredTensors()) source_.Set(tensor);
  }
  void SetScale(size_t index, uint16_t bits) {
    std::memcpy(source_.bytes(kScale).data() + 2 * index, &bits, 2);
  }

  GroupedType type_ = GroupedType::kInt8;
  MemorySource source_;
};

TEST_F(GroupedTableRefusalTest, AbsentTensors) {
  Use(GroupedType::kInt8);
  source_.Remove(kScale);
  ExpectRefused(absl::StatusCode::kNotFound, kScale, "missing", "");
  Use(GroupedType::kInt8);
  source_.Remove(kValues);
  ExpectRefused(absl::StatusCode::kNotFound, kValues, "missing", "");
}

TEST_F(GroupedTableRefusalTest, OtherTypesAndShapes) {
  Use(GroupedType::kInt8);
  source_.view(kValues).dtype = DType::kU8;
  ExpectRefused(absl::StatusCode::kDataLoss, kValues, "expected dtype I8", "found U8");
  Use(GroupedType::kInt8);
  source_.view(kValues).shape = {131, 4};
  ExpectRefused(absl::StatusCode::kDataLoss, kValues, "expected shape [4, 131]", "found [131, 4]");
  Use(GroupedType::kInt4);
  source_.view(kValues).shape = {4, 65};
  ExpectRefused(absl::StatusCode::kDataLoss, kValues, "expected shape [4, 66]", "found [4, 65]");
  Use(GroupedType::kInt4);
  source_.view(kScale).shape = {4, 2};
  ExpectRefused(absl::StatusCode::kDataLoss, kScale, "expected shape [4, 3]", "found [4, 2]");
  Use(GroupedType::kInt4);
  source_.view(kScale).dtype = DType::kU16;
  ExpectRefused(absl::StatusCode::kDataLoss, kScale, "expected dtype F16 or BF16", "found U16");
  // An int4 table where an int8 one is announced.
  Use(GroupedType::kInt4);
  type_ = GroupedType::kInt8;
  ExpectRefused(absl::StatusCode::kDataLoss, kValues, "expected dtype I8", "found U8");
}

TEST_F(GroupedTableRefusalTest, ScalesThatAreNoScales) {
  Use(GroupedType::kInt8);
  SetScale(7, FloatToBf16(std::numeric_limits<float>::quiet_NaN()));
  ExpectRefused(absl::StatusCode::kDataLoss, kScale, "expected a finite number", "NaN");
  SetScale(7, FloatToBf16(std::numeric_limits<float>::infinity()));
  ExpectRefused(absl::StatusCode::kDataLoss, kScale, "expected a finite number", "infinite");
  SetScale(7, FloatToBf16(-0.5f));
  ExpectRefused(absl::StatusCode::kDataLoss, kScale, "row 2, group 1: expected a scale of at least",
                "found -0.5");
  SetScale(7, 0x8000);
  EXPECT_TRUE(GroupedTable::Load(TableSite(4, 131), type_, source_).ok());
}

TEST_F(GroupedTableRefusalTest, AnUnusedHalfThatIsNotZero) {
  Use(GroupedType::kInt4);
  source_.bytes(kValues)[3 * 66 - 1] |= 0x40;
  ExpectRefused(absl::StatusCode::kDataLoss, kValues, "row 2: expected zero bits", "others");
}

}  // namespace
}  // namespace ultrasketch
