// Tokenizers for tests.
#ifndef ULTRASKETCH_TESTS_FORMAT_TOKENIZER_TEST_TOKENIZERS_H_
#define ULTRASKETCH_TESTS_FORMAT_TOKENIZER_TEST_TOKENIZERS_H_

#include <memory>
#include <string>

#include "gtest/gtest.h"

#include "engine/format/tokenizer/tokenizer.h"

namespace ultrasketch {

// One of tests/data/tokenizer ("llama3.json").
inline std::unique_ptr<Tokenizer> LoadTestTokenizer(const std::string& name) {
  auto tokenizer = Tokenizer::Load(std::string(TEST_DATA_DIR) + "/tokenizer/" + name);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

}  // namespace ultrasketch

#endif  // ULTRASKETCH_TESTS_FORMAT_TOKENIZER_TEST_TOKENIZERS_H_
