#include "engine/format/checksum.h"

#include <cstdint>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "engine/base/thread_pool.h"

namespace ultrasketch {
namespace {

TEST(Crc64Test, GivesThePublishedCheckValue) {
  EXPECT_EQ(Crc64("123456789", 9), 0x995dc9bbdf1939fau);
  EXPECT_EQ(Crc64("", 0), 0u);
  EXPECT_EQ(Crc64(nullptr, 0, 77), 77u);
}

TEST(Crc64Test, GoesOnAndCombinesAtEverySplit) {
  std::string bytes;
  for (int i = 0; i < 300; ++i) bytes.push_back(static_cast<char>(i * i));
  const uint64_t whole = Crc64(bytes.data(), 300);
  for (int64_t split = 0; split <= 300; ++split) {
    const uint64_t first = Crc64(bytes.data(), split);
    const uint64_t second = Crc64(bytes.data() + split, 300 - split);
    EXPECT_EQ(Crc64(bytes.data() + split, 300 - split, first), whole) << split;
    EXPECT_EQ(CombineCrc64(first, second, 300 - split), whole) << split;
  }
}

TEST(TensorChecksumsTest, GivesTheDocumentedExample) {
  const uint8_t bytes[] = {1, 2, 3, 4, 5, 6};
  ThreadPool pool(1);
  const auto checksums =
      TensorChecksums({{"t", {DType::kU8, {2, 3}, bytes}}, {"u", {DType::kF32, {}, bytes}}}, pool);
  ASSERT_EQ(checksums.size(), 2u);
  EXPECT_EQ(ChecksumString(checksums[0]), "38995bbaf33947b0");
  EXPECT_EQ(checksums[0], Crc64("U8[2,3]\1\2\3\4\5\6", 13));
  EXPECT_EQ(checksums[1], Crc64("F32[]\1\2\3\4", 9));
}

TEST(TensorChecksumsTest, DistinguishesTypesAndShapesOfEqualBytes) {
  EXPECT_NE(TensorChecksumStart(DType::kU8, {2, 3}), TensorChecksumStart(DType::kI8, {2, 3}));
  EXPECT_NE(TensorChecksumStart(DType::kU8, {2, 3}), TensorChecksumStart(DType::kU8, {3, 2}));
  EXPECT_NE(TensorChecksumStart(DType::kU8, {0}), TensorChecksumStart(DType::kU8, {0, 7}));
}

TEST(TensorChecksumsTest, DoNotDependOnTheNumberOfThreads) {
  std::vector<uint8_t> bytes(10'000'019);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i * i >> 7);
  const auto size = static_cast<int64_t>(bytes.size());
  const std::vector<NamedTensor> tensors = {{"a", {DType::kU8, {size}, bytes.data()}},
                                            {"b", {DType::kU8, {0}, bytes.data()}},
                                            {"c", {DType::kU8, {size - 5}, bytes.data() + 5}},
                                            {"d", {DType::kI8, {17}, bytes.data()}}};
  ThreadPool one(1);
  ThreadPool three(3);
  const std::vector<uint64_t> expected = TensorChecksums(tensors, one);
  EXPECT_EQ(TensorChecksums(tensors, three), expected);
  EXPECT_EQ(expected[0], Crc64(bytes.data(), size, TensorChecksumStart(DType::kU8, {size})));
}

TEST(ChecksumStringTest, RoundTripsAndRefusesOtherSpellings) {
  for (const uint64_t value : {uint64_t{0}, uint64_t{0xabcdef0123456789}, ~uint64_t{0}}) {
    uint64_t parsed = 1;
    EXPECT_EQ(ChecksumString(value).size(), 16u);
    EXPECT_TRUE(ParseChecksum(ChecksumString(value), &parsed));
    EXPECT_EQ(parsed, value);
  }
  uint64_t ignored = 0;
  for (const char* text : {"", "0123456789abcde", "0123456789abcdef0", "0123456789ABCDEF",
                           "0123456789abcdeg", " 123456789abcdef", "0x23456789abcdef"}) {
    EXPECT_FALSE(ParseChecksum(text, &ignored)) << text;
  }
}

}  // namespace
}  // namespace ultrasketch
