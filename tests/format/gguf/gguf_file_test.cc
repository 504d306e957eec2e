#include "engine/format/gguf/gguf_file.h"

#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/base/temporary_folder.h"
#include "tests/format/gguf/gguf_writer.h"

namespace ultrasketch {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint32_t kF32 = 0;
constexpr uint32_t kQ8_0 = 8;

// The bytes are refused as `code`, with a message that has the file's name and all `parts`.
void ExpectRejected(const std::string& bytes, const std::vector<std::string>& parts,
                    absl::StatusCode code = absl::StatusCode::kDataLoss) {
  const absl::Status status = GgufFile::Parse(bytes, "test.gguf").status();
  EXPECT_EQ(status.code(), code) << status;
  const std::string message(status.message());
  EXPECT_THAT(message, HasSubstr("test.gguf: "));
  for (const std::string& part : parts) EXPECT_THAT(message, HasSubstr(part));
}

GgufWriter WithTensors() {
  GgufWriter writer;
  writer.String("general.architecture", "llama");
  writer.Tensor("a", kF32, {2, 3}, std::string(24, 'a'));
  writer.Tensor("b", kQ8_0, {2, 32}, std::string(68, 'b'));
  return writer;
}

TEST(GgufFileTest, ReadsValuesOfAllTypes) {
  GgufWriter writer;
  writer.Raw("u8", GgufValueType::kUint8, GgufBytes().Number<uint8_t>(200).bytes());
  writer.Raw("i8", GgufValueType::kInt8, GgufBytes().Number<int8_t>(-100).bytes());
  writer.Raw("u16", GgufValueType::kUint16, GgufBytes().Number<uint16_t>(60000).bytes());
  writer.Raw("i16", GgufValueType::kInt16, GgufBytes().Number<int16_t>(-30000).bytes());
  writer.Uint32("u32", 4'000'000'000);
  writer.Raw("i32", GgufValueType::kInt32, GgufBytes().Number<int32_t>(-7).bytes());
  writer.Raw("u64", GgufValueType::kUint64, GgufBytes().Number<uint64_t>(1ull << 40).bytes());
  writer.Raw("i64", GgufValueType::kInt64, GgufBytes().Number<int64_t>(-(1ll << 40)).bytes());
  writer.Raw("f64", GgufValueType::kFloat64, GgufBytes().Number<double>(0.1).bytes());
  writer.Float32("f32", 0.5f);
  writer.Bool("yes", true);
  writer.Bool("no", false);
  writer.String("text", "caf\xc3\xa9");
  writer.Strings("texts", {"a", "", "bc"});
  writer.Int32s("integers", {3, -4});
  writer.Float32s("numbers", {1.5f, -2});
  for (const uint32_t version : {2u, 3u}) {
    writer.version = version;
    const std::string bytes = writer.Write();
    const auto file = GgufFile::Parse(bytes, "here");
    ASSERT_TRUE(file.ok()) << file.status();
    const GgufFile& f = **file;
    EXPECT_EQ(f.version(), version);
    constexpr int64_t kLeast = std::numeric_limits<int64_t>::min();
    constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
    const auto integer = [&](std::string_view key) {
      return f.Integer(key, kLeast, kMost)->value();
    };
    EXPECT_EQ(integer("u8"), 200);
    EXPECT_EQ(integer("i8"), -100);
    EXPECT_EQ(integer("u16"), 60000);
    EXPECT_EQ(integer("i16"), -30000);
    EXPECT_EQ(integer("u32"), 4'000'000'000);
    EXPECT_EQ(integer("i32"), -7);
    EXPECT_EQ(integer("u64"), int64_t{1} << 40);
    EXPECT_EQ(integer("i64"), -(int64_t{1} << 40));
    EXPECT_EQ(f.Number("f64", -1, 1)->value(), 0.1);
    EXPECT_EQ(f.Number("f32", -1, 1)->value(), 0.5);
    EXPECT_EQ(f.Number("i32", -10, 10)->value(), -7);
    EXPECT_TRUE(f.Bool("yes")->value());
    EXPECT_FALSE(f.Bool("no")->value());
    EXPECT_EQ(f.String("text")->value(), "caf\xc3\xa9");
    EXPECT_THAT(f.Strings("texts")->value(), ElementsAre("a", "", "bc"));
    EXPECT_THAT(f.Integers("integers", -4, 3)->value(), ElementsAre(3, -4));
    EXPECT_THAT(f.Integers("u8", 0, 255)->value(), ElementsAre(200));
    EXPECT_THAT(f.Numbers("numbers")->value(), ElementsAre(1.5, -2));
    EXPECT_FALSE(f.Integer("absent", 0, 1)->has_value());
    EXPECT_FALSE(f.Strings("absent")->has_value());
    EXPECT_THAT(f.KeysWithPrefix("text"), ElementsAre("text", "texts"));
  }
}

TEST(GgufFileTest, NamesKeyExpectedAndFoundForValuesOfAnotherKind) {
  GgufWriter writer;
  writer.Uint32("number", 7);
  writer.Float32("nan", std::numeric_limits<float>::quiet_NaN());
  writer.String("text", "seven");
  writer.Int32s("integers", {1, 2});
  writer.Raw("large", GgufValueType::kUint64, GgufBytes().Number(~uint64_t{0}).bytes());
  const std::string bytes = writer.Write();
  const auto file = GgufFile::Parse(bytes, "here");
  ASSERT_TRUE(file.ok()) << file.status();
  const auto expect = [](const absl::Status& status, const std::string& message) {
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
    EXPECT_EQ(status.message(), message);
  };
  expect((*file)->Integer("number", 8, 9).status(),
         "here: key \"number\": expected an integer from 8 to 9, found the number 7");
  expect((*file)->Integer("text", 0, 9).status(),
         "here: key \"text\": expected an integer from 0 to 9, found the string \"seven\"");
  expect((*file)->Integer("large", 0, std::numeric_limits<int64_t>::max()).status(),
         "here: key \"large\": expected an integer from 0 to 9223372036854775807, found the number "
         "18446744073709551615");
  expect((*file)->Number("nan", -1e300, 1e300).status(),
         "here: key \"nan\": expected a number from -1e+300 to 1e+300, found the number nan");
  expect((*file)->String("number").status(),
         "here: key \"number\": expected a string, found the number 7");
  expect((*file)->Bool("number").status(),
         "here: key \"number\": expected a bool, found the number 7");
  expect((*file)->Strings("integers").status(),
         "here: key \"integers\": expected an array of strings, found an array of 2 of type int32");
  expect((*file)->Integers("integers", 0, 1).status(),
         "here: key \"integers\": expected integers from 0 to 1, found 2 at place 1");
}

TEST(GgufFileTest, ReadsTensorsFromAMappedFile) {
  const TemporaryFolder folder;
  const auto file = GgufFile::Open(folder.Write("x.gguf", WithTensors().Write()));
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ((*file)->tensors().size(), 2u);
  const GgufTensor& a = (*file)->tensors()[0];
  EXPECT_EQ(a.name, "a");
  EXPECT_EQ(a.type->name, "F32");
  EXPECT_THAT(a.shape, ElementsAre(2, 3));
  EXPECT_EQ(a.num_bytes(), 24);
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(a.data), 24), std::string(24, 'a'));
  const GgufTensor& b = (*file)->tensors()[1];
  EXPECT_EQ(b.num_elements(), 64);
  EXPECT_EQ(b.num_bytes(), 68);
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(b.data), 68), std::string(68, 'b'));
}

TEST(GgufFileTest, HonoursTheFilesAlignment) {
  GgufWriter writer = WithTensors();
  writer.alignment = 128;
  ExpectRejected(writer.Write(), {"tensor \"b\"", "expected data at offset 32", "found 128"});
  writer.Uint32("general.alignment", 128);
  const std::string bytes = writer.Write();
  const auto file = GgufFile::Parse(bytes, "here");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(*(*file)->tensors()[1].data, 'b');
  for (const uint32_t alignment : {0u, 3u, 48u, 0xffffffffu}) {
    writer.Uint32("general.alignment", alignment);
    ExpectRejected(writer.Write(), {"key \"general.alignment\"", "found the number"});
  }
}

TEST(GgufFileTest, RefusesOtherFilesVersionsAndBigEndianByName) {
  ExpectRejected("", {"expected a file that begins with \"GGUF\""});
  ExpectRejected("GGU", {"expected a file that begins with \"GGUF\""});
  ExpectRejected("PK\x03\x04rest of an archive", {"found \"PK\\x03\\x04\""});
  ExpectRejected("GGUF", {"version", "truncated"});
  GgufWriter writer = WithTensors();
  writer.version = 1;
  ExpectRejected(writer.Write(), {"version 1"}, absl::StatusCode::kUnimplemented);
  writer.version = 4;
  ExpectRejected(writer.Write(), {"version 4"}, absl::StatusCode::kUnimplemented);
  writer.version = 3u << 24;
  ExpectRejected(writer.Write(), {"big-endian"}, absl::StatusCode::kUnimplemented);
}

TEST(GgufFileTest, EveryTruncationIsRefused) {
  const std::string bytes = WithTensors().Write();
  // What follows the last tensor is padding.
  const size_t needed = bytes.size() - (128 - 68 - 32);
  for (size_t size = 0; size < needed; ++size) {
    const auto file = GgufFile::Parse(std::string_view(bytes).substr(0, size), "test.gguf");
    ASSERT_FALSE(file.ok()) << size;
    ASSERT_EQ(file.status().code(), absl::StatusCode::kDataLoss) << size << file.status();
  }
  EXPECT_TRUE(GgufFile::Parse(std::string_view(bytes).substr(0, needed), "test.gguf").ok());
}

TEST(GgufFileTest, HugeCountsAreRefusedBeforeMemoryIsTaken) {
  for (const uint64_t count :
       {uint64_t{1000}, uint64_t{1} << 40, ~uint64_t{0} >> 1, ~uint64_t{0}}) {
    GgufWriter writer = WithTensors();
    writer.num_tensors = count;
    ExpectRejected(writer.Write(), {"number of tensors"});
    writer = WithTensors();
    writer.num_keys = count;
    ExpectRejected(writer.Write(), {"number of keys"});
    for (const auto type : {GgufValueType::kString, GgufValueType::kUint8, GgufValueType::kInt64}) {
      writer = WithTensors();
      writer.Raw("k", GgufValueType::kArray, GgufWriter::ArrayHeader(type, count).bytes());
      ExpectRejected(writer.Write(), {"key \"k\"", "expected an array of at most"});
    }
    writer = WithTensors();
    writer.Raw("k", GgufValueType::kString, GgufBytes().Number(count).bytes());
    ExpectRejected(writer.Write(), {"key \"k\""});
  }
}

TEST(GgufFileTest, RefusesMalformedKeys) {
  GgufWriter writer;
  writer.String("", "x");
  ExpectRejected(writer.Write(), {"key 0: expected a name"});
  writer = {};
  writer.String(std::string(65536, 'k'), "x");
  ExpectRejected(writer.Write(), {"at most 65535 bytes, found a length of 65536"});
  writer = {};
  writer.Raw("k", static_cast<GgufValueType>(13), "12345678");
  ExpectRejected(writer.Write(), {"key \"k\"", "expected a type from 0 to 12, found 13"});
  writer = {};
  writer.Raw("k", GgufValueType::kArray,
             GgufWriter::ArrayHeader(static_cast<GgufValueType>(99), 1).bytes() + "12345678");
  ExpectRejected(writer.Write(), {"key \"k\"", "expected a type from 0 to 12, found 99"});
  writer = {};
  writer.Raw("k", GgufValueType::kArray,
             GgufWriter::ArrayHeader(GgufValueType::kArray, 1).bytes() + "12345678");
  ExpectRejected(writer.Write(), {"key \"k\"", "arrays of arrays"},
                 absl::StatusCode::kUnimplemented);
  // The same key twice.
  GgufWriter once;
  once.Uint32("k", 1);
  const std::string bytes = once.Write();
  const std::string entry = bytes.substr(24);
  once.num_keys = 2;
  ExpectRejected(once.Write() + entry, {"key \"k\" occurs twice"});
}

TEST(GgufFileTest, RefusesMalformedTensors) {
  const auto with = [](std::string_view name, uint32_t type, std::vector<int64_t> shape,
                       std::optional<uint64_t> offset = std::nullopt) {
    GgufWriter writer;
    writer.Tensor("a", kF32, {2, 3}, std::string(24, 'a'));
    writer.Tensor(name, type, std::move(shape), std::string(68, 'b'), offset);
    return writer.Write();
  };
  ExpectRejected(with("a", kF32, {1}), {"tensor \"a\" occurs twice"});
  ExpectRejected(with("", kF32, {1}), {"tensor 1: expected a name"});
  ExpectRejected(with(std::string(65, 't'), kF32, {1}), {"at most 64 bytes"});
  ExpectRejected(with("t", kF32, {}), {"tensor \"t\"", "1 to 4 dimensions, found 0"});
  ExpectRejected(with("t", kF32, {1, 1, 1, 1, 1}), {"1 to 4 dimensions, found 5"});
  ExpectRejected(with("t", kF32, {2, 0}), {"tensor \"t\"", "expected extents from 1", "found 0"});
  ExpectRejected(with("t", kF32, {-1}), {"tensor \"t\"", "expected extents from 1"});
  ExpectRejected(with("t", kQ8_0, {64, 33}), {"tensor \"t\"", "multiple of 32", "[64, 33]"});
  ExpectRejected(with("t", kF32, {int64_t{1} << 62}), {"tensor \"t\"", "size below 2^63"});
  ExpectRejected(with("t", kF32, {int64_t{1} << 31, int64_t{1} << 31}), {"size below 2^63"});
  ExpectRejected(with("t", kQ8_0, {int64_t{1} << 40, int64_t{1} << 40}), {"size below 2^63"});
  ExpectRejected(with("t", kF32, {40}),
                 {"tensor \"t\"", "expected 160 bytes of data at offset 32"});
  ExpectRejected(with("t", 4, {32}), {"tensor \"t\"", "type 4 of ggml", "Q4_K"},
                 absl::StatusCode::kUnimplemented);
  ExpectRejected(with("t", 0xffffffff, {32}), {"type 4294967295 of ggml"},
                 absl::StatusCode::kUnimplemented);
  for (const uint64_t offset :
       {uint64_t{0}, uint64_t{1}, uint64_t{31}, uint64_t{64}, ~uint64_t{0}, uint64_t{1} << 63}) {
    ExpectRejected(with("t", kF32, {1}, offset), {"tensor \"t\"", "expected data at offset 32"});
  }
}

}  // namespace
}  // namespace ultrasketch
