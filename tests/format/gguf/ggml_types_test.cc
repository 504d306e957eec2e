#include "engine/format/gguf/ggml_types.h"

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "engine/format/json.h"

namespace ultrasketch {
namespace {

std::vector<uint8_t> FromHex(const std::string& digits) {
  std::vector<uint8_t> bytes;
  for (size_t i = 0; i + 1 < digits.size(); i += 2) {
    bytes.push_back(static_cast<uint8_t>(std::stoi(digits.substr(i, 2), nullptr, 16)));
  }
  return bytes;
}

// The file is gguf-py's answers: see make_blocks.py beside it.
TEST(GgmlTypesTest, DecodesBlocksAsGgufPyDoes) {
  const auto entries = ReadJsonFile(TEST_DATA_DIR "/gguf/blocks.json");
  ASSERT_TRUE(entries.ok()) << entries.status();
  ASSERT_EQ(entries->size(), 15u);
  for (const auto& entry : *entries) {
    SCOPED_TRACE(entry["type"].get<std::string>());
    const GgmlType* type = FindGgmlType(entry["id"].get<uint32_t>());
    ASSERT_NE(type, nullptr);
    EXPECT_EQ(type->name, entry["type"].get<std::string>());
    ASSERT_NE(type->decode, nullptr);
    const std::vector<uint8_t> blocks = FromHex(entry["blocks"].get<std::string>());
    const std::vector<uint8_t> bytes = FromHex(entry["values"].get<std::string>());
    std::vector<float> expected(bytes.size() / sizeof(float));
    std::memcpy(expected.data(), bytes.data(), bytes.size());
    const size_t num_blocks = blocks.size() / static_cast<size_t>(type->block_bytes);
    ASSERT_EQ(num_blocks * static_cast<size_t>(type->block_elements), expected.size());
    std::vector<float> values(expected.size());
    for (size_t i = 0; i < num_blocks; ++i) {
      type->decode(blocks.data() + i * static_cast<size_t>(type->block_bytes),
                   values.data() + i * static_cast<size_t>(type->block_elements));
    }
    // To the sign of a zero.
    for (size_t i = 0; i < values.size(); ++i) {
      ASSERT_EQ(values[i], expected[i]) << i;
      ASSERT_EQ(std::signbit(values[i]), std::signbit(expected[i])) << i;
    }
  }
}

TEST(GgmlTypesTest, EveryTypeWithADecoderIsChecked) {
  const auto entries = ReadJsonFile(TEST_DATA_DIR "/gguf/blocks.json");
  ASSERT_TRUE(entries.ok()) << entries.status();
  std::vector<std::string> names;
  for (const auto& entry : *entries) names.push_back(entry["type"].get<std::string>());
  for (uint32_t id = 0; id < 64; ++id) {
    const GgmlType* type = FindGgmlType(id);
    if (type == nullptr || type->decode == nullptr) continue;
    EXPECT_THAT(names, ::testing::Contains(std::string(type->name)));
  }
}

TEST(GgmlTypesTest, UnknownNumbersHaveNoType) {
  for (const uint32_t id : {4u, 5u, 31u, 1000u, 0xffffffffu}) EXPECT_EQ(FindGgmlType(id), nullptr);
}

}  // namespace
}  // namespace ultrasketch
