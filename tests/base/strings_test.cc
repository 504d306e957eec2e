#include "engine/base/strings.h"

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/cord.h"
#include "gtest/gtest.h"

#include "engine/base/random.h"
#include "engine/base/status.h"

namespace ultrasketch {
namespace {

// An independent decision: decode by the leading bits, then check the code point and that encoding
// it again takes as many bytes.
bool DecodesAndReencodes(std::string_view bytes) {
  size_t i = 0;
  while (i < bytes.size()) {
    const auto lead = static_cast<uint8_t>(bytes[i]);
    size_t length = 0;
    uint32_t code_point = 0;
    if ((lead & 0x80) == 0) {
      length = 1;
      code_point = lead;
    } else if ((lead & 0xe0) == 0xc0) {
      length = 2;
      code_point = lead & 0x1f;
    } else if ((lead & 0xf0) == 0xe0) {
      length = 3;
      code_point = lead & 0x0f;
    } else if ((lead & 0xf8) == 0xf0) {
      length = 4;
      code_point = lead & 0x07;
    } else {
      return false;
    }
    if (i + length > bytes.size()) return false;
    for (size_t k = 1; k < length; ++k) {
      const auto byte = static_cast<uint8_t>(bytes[i + k]);
      if ((byte & 0xc0) != 0x80) return false;
      code_point = code_point << 6 | (byte & 0x3f);
    }
    const size_t shortest = code_point < 0x80      ? 1
                            : code_point < 0x800   ? 2
                            : code_point < 0x10000 ? 3
                                                   : 4;
    if (length != shortest || code_point > 0x10ffff) return false;
    if (code_point >= 0xd800 && code_point <= 0xdfff) return false;
    i += length;
  }
  return true;
}

TEST(Utf8Test, AgreesOnEverySequenceOfThreeBytesAndManyOfFour) {
  std::string bytes(3, '\0');
  for (uint32_t i = 0; i < 0x1000000; ++i) {
    // The third byte matters by its class and its bounds alone.
    const uint32_t third = i & 0xff;
    if (third != 0 && third != 0x7f && third != 0x80 && third != 0xbf && third != 0xc0) continue;
    bytes[0] = static_cast<char>(i >> 16);
    bytes[1] = static_cast<char>(i >> 8);
    bytes[2] = static_cast<char>(i);
    ASSERT_EQ(IsValidUtf8(bytes), DecodesAndReencodes(bytes)) << std::hex << i;
  }
  for (uint64_t i = 0; i < 2'000'000; ++i) {
    const uint64_t word = RandomWord(5, 0, i);
    std::string four(4, '\0');
    four[0] = static_cast<char>(0xe8 | (word & 0x17));  // e8 to ff: mostly leads of four bytes
    for (size_t k = 1; k < 4; ++k) {
      four[k] = static_cast<char>(0x80 | (word >> (8 * k) & 0x3f));
    }
    if (word >> 60 == 0) four[3] = 'x';
    ASSERT_EQ(IsValidUtf8(four), DecodesAndReencodes(four)) << i;
  }
}

TEST(Utf8Test, AcceptsEveryCodePointAndRefusesItsTruncations) {
  for (uint32_t c = 0; c <= 0x10ffff; ++c) {
    std::string text;
    if (c < 0x80) {
      text = {static_cast<char>(c)};
    } else if (c < 0x800) {
      text = {static_cast<char>(0xc0 | c >> 6), static_cast<char>(0x80 | (c & 0x3f))};
    } else if (c < 0x10000) {
      text = {static_cast<char>(0xe0 | c >> 12), static_cast<char>(0x80 | (c >> 6 & 0x3f)),
              static_cast<char>(0x80 | (c & 0x3f))};
    } else {
      text = {static_cast<char>(0xf0 | c >> 18), static_cast<char>(0x80 | (c >> 12 & 0x3f)),
              static_cast<char>(0x80 | (c >> 6 & 0x3f)), static_cast<char>(0x80 | (c & 0x3f))};
    }
    const bool surrogate = c >= 0xd800 && c <= 0xdfff;
    ASSERT_EQ(IsValidUtf8(text), !surrogate) << c;
    for (size_t length = 1; length < text.size(); ++length) {
      ASSERT_FALSE(IsValidUtf8(text.substr(0, length))) << c;
    }
  }
}

TEST(QuotedTest, EscapesWhatWouldSpoilAMessage) {
  EXPECT_EQ(Quoted(""), "\"\"");
  EXPECT_EQ(Quoted("plain caf\xc3\xa9"), "\"plain caf\xc3\xa9\"");
  EXPECT_EQ(Quoted("a\"b\\c"), "\"a\\\"b\\\\c\"");
  EXPECT_EQ(Quoted(std::string_view("\0\n\x1b\x7f", 4)), "\"\\x00\\x0a\\x1b\\x7f\"");
  EXPECT_EQ(Quoted("\xff\xc3"), "\"\\xff\\xc3\"");
}

TEST(QuotedTest, CutsBetweenCharacters) {
  EXPECT_EQ(Quoted("abcdef", 6), "\"abcdef\"");
  EXPECT_EQ(Quoted("abcdefg", 6), "\"abcdef...\"");
  EXPECT_EQ(Quoted("ab\xe2\x82\xac", 4), "\"ab...\"");
  EXPECT_EQ(Quoted("x", 0), "\"...\"");
}

TEST(QuotedTest, IsAlwaysValidUtf8) {
  for (uint64_t i = 0; i < 20000; ++i) {
    std::string text;
    for (uint64_t k = 0; k < i % 40; ++k) text.push_back(static_cast<char>(RandomWord(6, i, k)));
    EXPECT_TRUE(IsValidUtf8(Quoted(text, i % 50)));
  }
}

TEST(HumanBytesTest, HasThreeDigits) {
  EXPECT_EQ(HumanBytes(0), "0 B");
  EXPECT_EQ(HumanBytes(512), "512 B");
  EXPECT_EQ(HumanBytes(999), "999 B");
  EXPECT_EQ(HumanBytes(1000), "1.00 kB");
  EXPECT_EQ(HumanBytes(12'069'352), "12.1 MB");
  EXPECT_EQ(HumanBytes(123'456'789), "123 MB");
  EXPECT_EQ(HumanBytes(1.24e9), "1.24 GB");
  EXPECT_EQ(HumanBytes(9.996e9), "10.0 GB");
  EXPECT_EQ(HumanBytes(999.7e6), "1.00 GB");
  EXPECT_EQ(HumanBytes(5e15), "5000 TB");
}

TEST(AdapterTest, ConvertsWithoutCopying) {
  const std::string text("a\0b", 3);
  EXPECT_EQ(A(text).data(), text.data());
  EXPECT_EQ(A(text).size(), 3u);
  EXPECT_EQ(S(A(text)).data(), text.data());
}

TEST(StatusTest, AnnotateKeepsCodeAndPayload) {
  EXPECT_TRUE(Annotate(absl::OkStatus(), "x").ok());
  absl::Status status = absl::DataLossError("broken");
  status.SetPayload("type/url", absl::Cord("payload"));
  const absl::Status annotated = Annotate(status, "file");
  EXPECT_EQ(annotated.code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(annotated.message(), "file: broken");
  EXPECT_EQ(annotated.GetPayload("type/url"), absl::Cord("payload"));
}

TEST(StatusTest, ErrnoHasACodeAndAText) {
  EXPECT_EQ(ErrnoStatus(ENOENT, "open x").code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ErrnoStatus(ENOENT, "open x").message(), "open x: No such file or directory");
  EXPECT_EQ(ErrnoStatus(EACCES, "x").code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(ErrnoStatus(ENOSPC, "x").code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ErrnoStatus(EIO, "x").code(), absl::StatusCode::kInternal);
}

absl::StatusOr<int> HalfOf(int value) {
  if (value % 2 != 0) return absl::InvalidArgumentError("odd");
  return value / 2;
}

absl::StatusOr<int> QuarterOf(int value) {
  US_ASSIGN_OR_RETURN(const int half, HalfOf(value));
  US_ASSIGN_OR_RETURN(value, HalfOf(half));
  US_RETURN_IF_ERROR(HalfOf(0).status());
  return value;
}

TEST(StatusTest, MacrosReturnEarly) {
  EXPECT_EQ(*QuarterOf(8), 2);
  EXPECT_EQ(QuarterOf(7).status().message(), "odd");
  EXPECT_EQ(QuarterOf(6).status().message(), "odd");
}

}  // namespace
}  // namespace ultrasketch
