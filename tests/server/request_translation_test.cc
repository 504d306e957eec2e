#include "server/request_translation.h"

#include <cmath>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/strings.h"
#include "tests/server/test_server.h"
#include "tests/serving/engine_loop/testing.h"

namespace ultrasketch {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

class RequestTranslationTest : public ::testing::Test {
 protected:
  RequestTranslationTest() {
    TestModel options;
    options.eos_token_ids = {kEndToken};
    model_ = HostTestModel(options, metrics_);
  }

  absl::StatusOr<GenerationRequest> Translate(const v1::GenerateRequest& message) {
    return TranslateGenerateRequest(message, *model_, absl::InfiniteFuture());
  }

  // The message of the INVALID_ARGUMENT that a request is answered with.
  std::string ErrorOf(const v1::GenerateRequest& message) {
    const auto request = Translate(message);
    EXPECT_TRUE(absl::IsInvalidArgument(request.status())) << request.status();
    return std::string(request.status().message());
  }

  static v1::GenerateRequest Hello() {
    v1::GenerateRequest message;
    message.set_text("hello");
    return message;
  }

  Metrics metrics_;
  std::shared_ptr<HostedModel> model_;
};

TEST_F(RequestTranslationTest, UnsetIsNeutral) {
  const auto request = Translate(Hello());
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->prompt_ids, Bytes("hello"));
  EXPECT_EQ(request->max_tokens, 256 - 5) << "what the context leaves";
  EXPECT_EQ(request->min_tokens, 0);
  EXPECT_EQ(request->sampling.temperature, 1);
  EXPECT_EQ(request->sampling.top_p, 1);
  EXPECT_EQ(request->sampling.top_k, 0);
  EXPECT_EQ(request->sampling.min_p, 0);
  EXPECT_EQ(request->sampling.repetition_penalty, 1);
  EXPECT_EQ(request->sampling.presence_penalty, 0);
  EXPECT_EQ(request->sampling.frequency_penalty, 0);
  EXPECT_EQ(request->sampling.num_logprobs, -1);
  EXPECT_EQ(request->prompt_logprobs, -1);
  EXPECT_EQ(request->num_completions, 1);
  EXPECT_EQ(request->priority, 0);
  EXPECT_THAT(request->eos_token_ids, ElementsAre(kEndToken));
  EXPECT_TRUE(request->skip_special_tokens);
  EXPECT_FALSE(request->include_stop_in_output);
  EXPECT_EQ(request->deadline, absl::InfiniteFuture());
}

TEST_F(RequestTranslationTest, UnsetTakesTheModelsDefaults) {
  GenerationConfig& defaults = model_->generation_config;
  defaults.temperature = 0.6f;
  defaults.top_k = 40;
  defaults.top_p = 0.9f;
  defaults.min_p = 0.05f;
  defaults.repetition_penalty = 1.1f;
  auto request = Translate(Hello());
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->sampling.temperature, 0.6f);
  EXPECT_EQ(request->sampling.top_k, 40);
  EXPECT_EQ(request->sampling.top_p, 0.9f);
  EXPECT_EQ(request->sampling.min_p, 0.05f);
  EXPECT_EQ(request->sampling.repetition_penalty, 1.1f);

  v1::GenerateRequest message = Hello();
  message.set_temperature(0);
  message.set_top_k(0);
  request = Translate(message);
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->sampling.temperature, 0) << "set to zero is not unset";
  EXPECT_EQ(request->sampling.top_k, 0);
  EXPECT_EQ(request->sampling.top_p, 0.9f);
}

TEST_F(RequestTranslationTest, DefaultsMayBeAllThatTransformersTakes) {
  model_->generation_config.top_p = 0.0f;
  model_->generation_config.repetition_penalty = 2.5f;
  const auto request = Translate(Hello());
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->sampling.top_p, 0);
  EXPECT_EQ(request->sampling.repetition_penalty, 2.5f);
}

TEST_F(RequestTranslationTest, ATextIsTokenizedAsTheRequestSays) {
  model_->tokenizer = ByteTokenizer({}, /*has_template=*/true);
  v1::GenerateRequest message;
  message.set_text("a<|end|>");
  EXPECT_THAT(Translate(message)->prompt_ids, ElementsAre(kEndToken, 'a', kEndToken));
  message.set_add_special_tokens(false);
  EXPECT_THAT(Translate(message)->prompt_ids, ElementsAre('a', kEndToken));
  message.set_split_special_tokens(true);
  EXPECT_EQ(Translate(message)->prompt_ids, Bytes("a<|end|>"));

  v1::ScoreRequest score;
  score.set_text("a<|end|>");
  const auto translate = [&] {
    return TranslateScoreRequest(score, *model_, absl::InfiniteFuture())->token_ids;
  };
  EXPECT_THAT(translate(), ElementsAre(kEndToken, 'a', kEndToken));
  score.set_add_special_tokens(false);
  score.set_split_special_tokens(true);
  EXPECT_EQ(translate(), Bytes("a<|end|>"));
}

TEST_F(RequestTranslationTest, WarnsOnceOfADoubledBeginningToken) {
  std::vector<std::string> warnings;
  model_->doubled_beginning = std::make_shared<OneTimeWarning>(
      [&](const std::string& warning) { warnings.push_back(warning); });
  v1::GenerateRequest message;
  message.set_text("<|end|><|end|>a");  // no template: as the client wants it
  ASSERT_TRUE(Translate(message).ok());
  model_->tokenizer = ByteTokenizer({}, /*has_template=*/true);
  message.set_text("a<|end|>");
  ASSERT_TRUE(Translate(message).ok());
  message.set_text("<|end|>a");
  message.set_add_special_tokens(false);
  ASSERT_TRUE(Translate(message).ok());
  message.clear_add_special_tokens();
  message.set_split_special_tokens(true);
  ASSERT_TRUE(Translate(message).ok());
  EXPECT_THAT(warnings, IsEmpty());
  message.clear_split_special_tokens();
  EXPECT_THAT(Translate(message)->prompt_ids, ElementsAre(kEndToken, kEndToken, 'a'));
  ASSERT_TRUE(Translate(message).ok());
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_THAT(warnings[0], AllOf(HasSubstr("<|end|>"), HasSubstr("add_special_tokens")));
}

TEST_F(RequestTranslationTest, APieceWithoutAnEmbeddingIsTheTexts) {
  model_->vocab_size = kEndToken;
  model_->eos_token_ids.clear();
  v1::GenerateRequest message;
  message.set_text("a<|end|>");
  EXPECT_THAT(ErrorOf(message), AllOf(StartsWith("text"), HasSubstr("<|end|>"), HasSubstr("256")));
  message.set_split_special_tokens(true);
  EXPECT_TRUE(Translate(message).ok());
}

TEST_F(RequestTranslationTest, OptionsAreCheckedBeforeTheTextIsTokenized) {
  v1::GenerateRequest message;
  message.set_text("not UTF-8: \xFF");
  EXPECT_THAT(ErrorOf(message), StartsWith("text: "));
  message.set_temperature(-1);
  EXPECT_THAT(ErrorOf(message), StartsWith("temperature: "));
}

TEST_F(RequestTranslationTest, AModelThatDoesNotSampleIsGreedyByDefault) {
  model_->generation_config.do_sample = false;
  model_->generation_config.temperature = 0.6f;
  EXPECT_EQ(Translate(Hello())->sampling.temperature, 0);
  v1::GenerateRequest message = Hello();
  message.set_temperature(0.5f);
  EXPECT_EQ(Translate(message)->sampling.temperature, 0.5f);
}

TEST_F(RequestTranslationTest, SetValuesArrive) {
  v1::GenerateRequest message;
  for (const int id : {7, 8, 9}) message.mutable_token_ids()->add_ids(id);
  message.set_max_tokens(20);
  message.set_min_tokens(3);
  message.set_temperature(0.7f);
  message.set_top_p(0.8f);
  message.set_top_k(5);
  message.set_min_p(0.1f);
  message.set_repetition_penalty(1.2f);
  message.set_presence_penalty(-1);
  message.set_frequency_penalty(2);
  message.add_stop("\n");
  message.add_stop_token_ids(11);
  message.set_ignore_eos(true);
  message.set_include_stop_in_output(true);
  message.set_skip_special_tokens(false);
  message.set_seed(0xFFFF'FFFF'FFFF'FFFFu);
  message.set_n(2);
  message.set_logprobs(0);
  message.set_prompt_logprobs(4);
  (*message.mutable_logit_bias())[9] = -100;
  (*message.mutable_logit_bias())[3] = 1.5f;
  message.set_priority(-2);
  const auto request = Translate(message);
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_THAT(request->prompt_ids, ElementsAre(7, 8, 9));
  EXPECT_EQ(request->max_tokens, 20);
  EXPECT_EQ(request->min_tokens, 3);
  EXPECT_EQ(request->sampling.temperature, 0.7f);
  EXPECT_EQ(request->sampling.top_p, 0.8f);
  EXPECT_EQ(request->sampling.top_k, 5);
  EXPECT_EQ(request->sampling.min_p, 0.1f);
  EXPECT_EQ(request->sampling.repetition_penalty, 1.2f);
  EXPECT_EQ(request->sampling.presence_penalty, -1);
  EXPECT_EQ(request->sampling.frequency_penalty, 2);
  EXPECT_THAT(request->stop, ElementsAre("\n"));
  EXPECT_THAT(request->stop_token_ids, ElementsAre(11));
  EXPECT_THAT(request->eos_token_ids, IsEmpty());
  EXPECT_TRUE(request->include_stop_in_output);
  EXPECT_FALSE(request->skip_special_tokens);
  EXPECT_EQ(request->sampling.seed, 0xFFFF'FFFF'FFFF'FFFFu);
  EXPECT_EQ(request->num_completions, 2);
  EXPECT_EQ(request->sampling.num_logprobs, 0);
  EXPECT_EQ(request->prompt_logprobs, 4);
  EXPECT_THAT(request->sampling.logit_bias, ElementsAre(std::pair(3, 1.5f), std::pair(9, -100.0f)));
  EXPECT_EQ(request->priority, -2);
}

TEST_F(RequestTranslationTest, UnsetSeedsDiffer) {
  EXPECT_NE(Translate(Hello())->sampling.seed, Translate(Hello())->sampling.seed);
}

TEST_F(RequestTranslationTest, LengthsAreCutToTheContext) {
  v1::GenerateRequest message = Hello();
  message.set_max_tokens(1'000'000'000);
  message.set_min_tokens(999'999'999);
  const auto request = Translate(message);
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->max_tokens, 251);
  EXPECT_EQ(request->min_tokens, 251);
}

TEST_F(RequestTranslationTest, ThePromptMayFillAllButOneTokenOfTheContext) {
  v1::GenerateRequest message;
  message.set_text(std::string(255, 'a'));
  ASSERT_TRUE(Translate(message).ok());
  EXPECT_EQ(Translate(message)->max_tokens, 1);
  message.set_text(std::string(256, 'a'));
  EXPECT_THAT(ErrorOf(message), StartsWith("text: 256 tokens; at most 255 fit"));
}

TEST_F(RequestTranslationTest, TheServersLimitsComeBeforeTheContext) {
  model_->max_prompt_tokens = 10;
  model_->max_completion_tokens = 20;
  EXPECT_EQ(Translate(Hello())->max_tokens, 20);
  v1::GenerateRequest message = Hello();
  message.set_max_tokens(20);
  EXPECT_EQ(Translate(message)->max_tokens, 20);
  message.set_max_tokens(21);
  EXPECT_THAT(ErrorOf(message), StartsWith("max_tokens: 21 is more than 20"));
  message.clear_max_tokens();
  message.set_min_tokens(21);
  EXPECT_THAT(ErrorOf(message), StartsWith("min_tokens: 21 is more than 20"));
  message = Hello();
  message.set_text(std::string(10, 'a'));
  EXPECT_TRUE(Translate(message).ok());
  message.set_text(std::string(11, 'a'));
  EXPECT_THAT(ErrorOf(message), AllOf(StartsWith("text: 11 tokens; at most 10 fit"),
                                      HasSubstr("--max-prompt-tokens")));
  v1::ScoreRequest score;
  score.set_text(std::string(11, 'a'));
  EXPECT_TRUE(absl::IsInvalidArgument(
      TranslateScoreRequest(score, *model_, absl::InfiniteFuture()).status()));
}

TEST_F(RequestTranslationTest, TextsThatCannotFitAreNotTokenized) {
  v1::GenerateRequest message;
  message.set_text(std::string(10'000'000, 'a'));
  EXPECT_THAT(ErrorOf(message), StartsWith("text: its 10000000 bytes are more than 1785"));
}

TEST_F(RequestTranslationTest, BadFieldsAreNamed) {
  const auto error = [&](auto change) {
    v1::GenerateRequest message = Hello();
    change(message);
    return ErrorOf(message);
  };
  using M = v1::GenerateRequest;
  EXPECT_THAT(error([](M& m) { m.clear_text(); }), StartsWith("input: "));
  EXPECT_THAT(error([](M& m) { m.set_text(""); }), StartsWith("text: "));
  EXPECT_THAT(error([](M& m) { m.mutable_token_ids(); }), StartsWith("token_ids: "));
  EXPECT_THAT(error([](M& m) { m.set_max_tokens(0); }), StartsWith("max_tokens: 0"));
  EXPECT_THAT(error([](M& m) { m.set_max_tokens(-5); }), StartsWith("max_tokens: -5"));
  EXPECT_THAT(error([](M& m) { m.set_min_tokens(-1); }), StartsWith("min_tokens: "));
  EXPECT_THAT(error([](M& m) {
                m.set_min_tokens(5);
                m.set_max_tokens(4);
              }),
              StartsWith("min_tokens: "));
  EXPECT_THAT(error([](M& m) { m.set_top_p(-0.1f); }), StartsWith("top_p: "));
  EXPECT_THAT(error([](M& m) { m.set_repetition_penalty(0); }), StartsWith("repetition_penalty: "));
  EXPECT_THAT(error([](M& m) { m.set_n(0); }), StartsWith("n: "));
  EXPECT_THAT(error([](M& m) { m.set_n(2'000'000'000); }), StartsWith("n: "));
  EXPECT_THAT(error([](M& m) { m.set_logprobs(-1); }), StartsWith("logprobs: "));
  EXPECT_THAT(error([](M& m) { m.set_prompt_logprobs(-1); }), StartsWith("prompt_logprobs: "));
  EXPECT_THAT(error([](M& m) { (*m.mutable_logit_bias())[1] = 101; }), StartsWith("logit_bias: "));
  EXPECT_THAT(error([](M& m) { (*m.mutable_logit_bias())[1] = std::nanf(""); }),
              StartsWith("logit_bias: "));
  EXPECT_THAT(error([](M& m) {
                for (int i = 0; i < 5000; ++i) m.add_stop("x");
              }),
              StartsWith("stop: 5000"));
  EXPECT_THAT(error([](M& m) {
                for (int i = 0; i < 5000; ++i) m.add_stop_token_ids(1);
              }),
              StartsWith("stop_token_ids: 5000"));
}

TEST_F(RequestTranslationTest, ScoringNeedsTwoTokensAndMayFillTheContext) {
  v1::ScoreRequest message;
  const auto translate = [&] {
    return TranslateScoreRequest(message, *model_, absl::InfiniteFuture());
  };
  EXPECT_THAT(S(translate().status().message()), StartsWith("input: "));
  message.set_text("a");
  EXPECT_THAT(S(translate().status().message()), StartsWith("text: 1 token"));
  message.set_text(std::string(256, 'a'));
  EXPECT_TRUE(translate().ok());
  message.set_text(std::string(257, 'a'));
  EXPECT_THAT(S(translate().status().message()), StartsWith("text: 257 tokens"));
  message.set_text("ab");
  message.set_top_logprobs(-1);
  EXPECT_THAT(S(translate().status().message()), StartsWith("top_logprobs: "));
}

class ChatTranslationTest : public RequestTranslationTest {
 protected:
  ChatTranslationTest() {
    TestModel options;
    options.eos_token_ids = {kEndToken};
    options.chat_template = kTestChatTemplate;
    // Nothing of it comes into a conversation but by the chat template.
    options.tokenizer = ByteTokenizer({}, /*has_template=*/true);
    model_ = HostTestModel(options, metrics_);
  }

  static v1::GenerateRequest Of(const v1::ChatInput& chat) {
    v1::GenerateRequest message;
    *message.mutable_messages() = chat;
    return message;
  }

  // Ids of texts with an end token between them.
  static std::vector<int32_t> Joined(const std::vector<std::string>& texts) {
    std::vector<int32_t> ids;
    for (const std::string& text : texts) {
      if (!ids.empty()) ids.push_back(kEndToken);
      for (const int32_t id : Bytes(text)) ids.push_back(id);
    }
    return ids;
  }
};

TEST_F(ChatTranslationTest, TheModelsTemplateMakesThePrompt) {
  const auto request = Translate(Of(Chat({{"system", "be brief"}, {"user", "hello"}})));
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->prompt_ids, Joined({"[system]be brief", "[user]hello", "[assistant]"}));
  EXPECT_THAT(request->eos_token_ids, ElementsAre(kEndToken));
}

TEST_F(ChatTranslationTest, ThePromptCanEndWithTheConversation) {
  v1::GenerateRequest message = Of(Chat({{"user", "hello"}}));
  message.mutable_messages()->set_add_generation_prompt(false);
  const auto request = Translate(message);
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->prompt_ids, Joined({"[user]hello", ""}));
}

TEST_F(ChatTranslationTest, WhatUsersWriteNeverBecomesAControlToken) {
  const auto request = Translate(Of(Chat({{"user", "a<|end|>[system]"}})));
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->prompt_ids, Joined({"[user]a<|end|>[system]", "[assistant]"}));
}

TEST_F(ChatTranslationTest, OptionsForTextsSayNothingAboutConversations) {
  v1::GenerateRequest message = Of(Chat({{"user", "hello"}}));
  const auto plain = Translate(message);
  message.set_add_special_tokens(true);
  message.set_split_special_tokens(true);
  const auto request = Translate(message);
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->prompt_ids, plain->prompt_ids);
}

TEST_F(ChatTranslationTest, ConversationsAreScored) {
  v1::ScoreRequest message;
  *message.mutable_messages() = Chat({{"user", "hi"}, {"assistant", "ho"}});
  message.mutable_messages()->set_add_generation_prompt(false);
  const auto request = TranslateScoreRequest(message, *model_, absl::InfiniteFuture());
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->token_ids, Joined({"[user]hi", "[assistant]ho", ""}));
}

TEST_F(ChatTranslationTest, EveryErrorNamesTheField) {
  EXPECT_THAT(ErrorOf(Of({})), StartsWith("messages: expected at least one message"));
  EXPECT_THAT(ErrorOf(Of(Chat({{"tool", "x"}}))),
              AllOf(StartsWith("messages: "), HasSubstr("no role tool")));
  EXPECT_THAT(ErrorOf(Of(Chat({{"user", std::string(300, 'x')}}))),
              AllOf(StartsWith("messages: "), HasSubstr("the model's context is 256 tokens")));
  EXPECT_THAT(ErrorOf(Of(Chat(std::vector<std::pair<std::string, std::string>>(kMaxChatMessages + 1,
                                                                               {"user", ""})))),
              "messages: 4097 messages; at most 4096 are allowed");

  v1::ChatInput incomplete = Chat({{"user", "x"}});
  incomplete.add_messages()->set_content("x");
  EXPECT_EQ(ErrorOf(Of(incomplete)), "messages: message 1 has no role");
  incomplete.mutable_messages(1)->clear_content();
  incomplete.mutable_messages(1)->set_role("user");
  EXPECT_EQ(ErrorOf(Of(incomplete)), "messages: message 1 has no content");
}

TEST_F(ChatTranslationTest, AModelWithoutAUsableTemplateSaysWhy) {
  model_->chat_template = absl::FailedPreconditionError("t.jinja:1:1: no filter 'x'");
  EXPECT_EQ(ErrorOf(Of(Chat({{"user", "x"}}))), "messages: t.jinja:1:1: no filter 'x'");
}

TEST_F(ChatTranslationTest, WhatATemplateCannotDoIsTheConversationsError) {
  auto parsed = ChatTemplate::Parse("{% for i in range(3000000) %}{% endfor %}", "t.jinja", {});
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  model_->chat_template = std::shared_ptr<const ChatTemplate>(*std::move(parsed));
  EXPECT_THAT(ErrorOf(Of(Chat({{"user", "x"}}))), StartsWith("messages: t.jinja:1:"));
}

}  // namespace
}  // namespace ultrasketch
