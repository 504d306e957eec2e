// Rendering and encoding against the recorded answers of transformers (see
// tests/data/chat/make_oracles.py).
#include <cstdint>
#include <cstdlib>
#include <ctime>
#include <iostream>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "engine/base/file.h"
#include "engine/base/strings.h"
#include "engine/format/chat/chat_template.h"
#include "engine/format/tokenizer/tokenizer.h"

namespace ultrasketch {
namespace {

using nlohmann::json;
using SpecialTokens = std::map<std::string, std::string>;

std::string DataPath(const std::string& name) { return std::string(TEST_DATA_DIR) + "/" + name; }

json ReadJson(const std::string& path) {
  const auto text = ReadFile(path);
  EXPECT_TRUE(text.ok()) << text.status();
  return text.ok() ? json::parse(*text, nullptr, false) : json();
}

ChatOptions OracleOptions(bool add_generation_prompt) {
  std::tm now = {};
  now.tm_year = 2024 - 1900;
  now.tm_mon = 6;
  now.tm_mday = 4;
  now.tm_hour = 9;
  now.tm_min = 8;
  now.tm_sec = 7;
  now.tm_wday = 4;
  now.tm_yday = 185;
  return {.add_generation_prompt = add_generation_prompt, .now = now};
}

std::vector<ChatMessage> Messages(const json& list) {
  std::vector<ChatMessage> messages;
  for (const json& message : list)
    messages.push_back({message["role"].get<std::string>(), message["content"].get<std::string>()});
  return messages;
}

// Where `chat` says that text comes from the messages, it does: each range is made of parts of
// them.
void CheckPlainRanges(const RenderedChat& chat) {
  size_t end = 0;
  for (const ByteRange& range : chat.plain_ranges) {
    EXPECT_GE(range.begin, end);
    EXPECT_LT(range.begin, range.end);
    end = range.end;
  }
  EXPECT_LE(end, chat.text.size());
}

// How many cases rendered.
int CheckModel(const json& model, const ChatTemplate& chat_template, const Tokenizer* tokenizer) {
  int num_rendered = 0;
  for (const json& test_case : model["cases"]) {
    const auto messages = Messages(test_case["messages"]);
    const auto chat = chat_template.Render(
        messages, OracleOptions(test_case["add_generation_prompt"].get<bool>()));
    SCOPED_TRACE(test_case["messages"].dump());
    if (test_case.contains("text")) {
      EXPECT_TRUE(chat.ok()) << chat.status();
      if (!chat.ok()) continue;
      EXPECT_EQ(chat->text, test_case["text"].get<std::string>());
      CheckPlainRanges(*chat);
      ++num_rendered;
      if (tokenizer == nullptr || !test_case.contains("ids")) continue;
      const auto ids = EncodeChat(*tokenizer, *chat);
      EXPECT_TRUE(ids.ok()) << ids.status();
      if (!ids.ok()) continue;
      EXPECT_EQ(*ids, test_case["ids"].get<std::vector<int32_t>>());
      continue;
    }
    EXPECT_EQ(chat.status().code(), absl::StatusCode::kInvalidArgument) << chat.status();
    if (test_case.contains("message")) {
      EXPECT_NE(chat.status().message().find(Quoted(test_case["message"].get<std::string>(), 500)),
                absl::string_view::npos)
          << chat.status();
    }
  }
  return num_rendered;
}

TEST(ChatOracleTest, RendersAndEncodesLikeTransformers) {
  const json oracle = ReadJson(DataPath("chat/chat-oracle.json"));
  ASSERT_EQ(oracle["models"].size(), 10u);
  for (const json& model : oracle["models"]) {
    const auto name = model["template"].get<std::string>();
    SCOPED_TRACE(name);
    const auto source = ReadFile(DataPath("chat/templates/" + name));
    ASSERT_TRUE(source.ok()) << source.status();
    const auto chat_template =
        ChatTemplate::Parse(*source, name, model["special_tokens"].get<SpecialTokens>());
    ASSERT_TRUE(chat_template.ok()) << chat_template.status();
    const auto tokenizer =
        Tokenizer::Load(DataPath("tokenizer/" + model["tokenizer"].get<std::string>()));
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    EXPECT_GT(CheckModel(model, **chat_template, tokenizer->get()), 0);
  }
}

TEST(ChatOracleTest, EachConstructRendersLikeJinja) {
  const json oracle = ReadJson(DataPath("chat/constructs-oracle.json"));
  const auto messages = Messages(oracle["messages"]);
  for (const json& test_case : oracle["cases"]) {
    const auto source = test_case["template"].get<std::string>();
    SCOPED_TRACE(source);
    const auto chat_template =
        ChatTemplate::Parse(source, "template", oracle["special_tokens"].get<SpecialTokens>());
    const auto chat = chat_template.ok() ? (*chat_template)->Render(messages, OracleOptions(true))
                                         : chat_template.status();
    if (test_case.contains("text")) {
      ASSERT_TRUE(chat.ok()) << chat.status();
      EXPECT_EQ(chat->text, test_case["text"].get<std::string>());
      CheckPlainRanges(*chat);
    } else {
      EXPECT_FALSE(chat.ok()) << chat->text;
      EXPECT_TRUE(chat.status().code() == absl::StatusCode::kInvalidArgument ||
                  chat.status().code() == absl::StatusCode::kUnimplemented)
          << chat.status();
    }
  }
}

// Templates that are not in the tree; see make_oracles.py. What is refused is counted, what is
// rendered must be right.
TEST(ChatOracleTest, OtherTemplatesRenderLikeTransformersOrAreRefused) {
  const char* path = std::getenv("ULTRASKETCH_CHAT_ORACLE");
  if (path == nullptr) GTEST_SKIP() << "ULTRASKETCH_CHAT_ORACLE is not set";
  const json oracle = ReadJson(path);
  for (const json& model : oracle["models"]) {
    const auto name = model["template"].get<std::string>();
    const auto source = ReadFile(name);
    ASSERT_TRUE(source.ok()) << source.status();
    const auto chat_template =
        ChatTemplate::Parse(*source, name, model["special_tokens"].get<SpecialTokens>());
    if (!chat_template.ok()) {
      std::cout << "refused: " << chat_template.status() << "\n";
      continue;
    }
    int num_refused = 0;
    for (const json& test_case : model["cases"]) {
      const auto chat = (*chat_template)
                            ->Render(Messages(test_case["messages"]),
                                     OracleOptions(test_case["add_generation_prompt"].get<bool>()));
      if (chat.status().code() == absl::StatusCode::kUnimplemented) {
        if (num_refused++ == 0) std::cout << "refuses: " << chat.status() << "\n";
        continue;
      }
      EXPECT_EQ(chat.ok() ? "" : chat.status().ToString(),
                test_case.contains("text") ? "" : chat.status().ToString())
          << name << test_case["messages"];
      if (!chat.ok()) continue;
      EXPECT_EQ(chat->text, test_case.value("text", "an error")) << name << test_case["messages"];
    }
  }
}

}  // namespace
}  // namespace ultrasketch
