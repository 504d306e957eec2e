#include "engine/compress/self_text.h"

#include <algorithm>
#include <atomic>
#include <deque>
#include <memory>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/file.h"
#include "engine/compress/token_windows.h"
#include "tests/base/temporary_folder.h"
#include "tests/models/tiny_model.h"

namespace ultrasketch {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Lt;

constexpr int32_t kEnd = 9;
constexpr int32_t kTurnEnd = 8;

// Writes 20, 21, 22 ... except where the script says otherwise: token after that many draws.
class ScriptedModel : public Model {
 public:
  explicit ScriptedModel(std::deque<int32_t> script) : script_(std::move(script)) {
    nlohmann::json config = TinyConfig();
    config["bos_token_id"] = 1;
    config_ = *ParseModelConfig(config, "config.json");
    layout_.block_size = options_.block_size;
    layout_.num_blocks = options_.kv_cache_tokens / options_.block_size;
  }

  const ModelConfig& config() const override { return config_; }
  const ModelOptions& options() const override { return options_; }
  const KvCacheLayout& cache_layout() const override { return layout_; }
  MemoryUsage memory_usage() const override { return {}; }
  absl::Status Forward(absl::Span<const SequenceSlice> sequences) override {
    num_logits_ = static_cast<int64_t>(sequences.size());
    for (const SequenceSlice& sequence : sequences) {
      EXPECT_EQ(sequence.num_tokens(), 1);
      fed_.push_back(sequence.token_ids[0]);
    }
    return absl::OkStatus();
  }
  int64_t num_logits() const override { return num_logits_; }
  absl::Status Sample(absl::Span<const SampleRequest> requests,
                      absl::Span<SampledToken> tokens) override {
    for (size_t i = 0; i < requests.size(); ++i) {
      tokens[i].id = next_++;
      if (script_.empty()) continue;
      if (script_.front() != 0) tokens[i].id = script_.front();
      script_.pop_front();
      const auto& forbidden = requests[i].forbidden_ids;
      EXPECT_EQ(std::find(forbidden.begin(), forbidden.end(), tokens[i].id), forbidden.end());
      forbidden_.push_back({forbidden.begin(), forbidden.end()});
    }
    return absl::OkStatus();
  }
  absl::Status CopyLogits(int64_t, absl::Span<float>) override { return absl::OkStatus(); }

  const std::vector<int32_t>& fed() const { return fed_; }
  const std::vector<std::vector<int32_t>>& forbidden() const { return forbidden_; }

 private:
  std::deque<int32_t> script_;
  ModelConfig config_;
  ModelOptions options_;
  KvCacheLayout layout_;
  int64_t num_logits_ = 0;
  int32_t next_ = 20;
  std::vector<int32_t> fed_;
  std::vector<std::vector<int32_t>> forbidden_;
};

ConversationTokens Turns() {
  return {.beginning = {1, 2}, .user_end = {kTurnEnd, 3}, .answer_end = {kEnd, 4, 5}};
}

TEST(SelfTextTest, TheTemplateTakesOverWhereAMessageEnds) {
  ScriptedModel model({0, 0, kEnd, 0, kEnd, 0, kTurnEnd, 0});
  SelfTextOptions options;
  options.num_windows = 1;
  options.window_tokens = 16;
  options.conversation = Turns();
  options.free_share = 0;
  options.eos_token_ids = {kEnd};
  const auto tokens = WriteSelfText(model, options);
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  // beginning, message, its end, answer, its end, message that ends as the template has it, answer
  EXPECT_THAT(*tokens,
              ElementsAre(1, 2, 20, 21, kTurnEnd, 3, 23, kEnd, 4, 5, 25, kTurnEnd, 3, 27, 28, 29));
  // Every token but the last has been read, in order.
  EXPECT_EQ(model.fed(), std::vector<int32_t>(tokens->begin(), tokens->end() - 1));
  // No message is empty.
  EXPECT_THAT(model.forbidden()[0], ElementsAre(kEnd, kTurnEnd));
  EXPECT_THAT(model.forbidden()[1], ElementsAre());
  EXPECT_THAT(model.forbidden()[3], ElementsAre(kEnd, kTurnEnd));
}

TEST(SelfTextTest, FreeWindowsAreSpreadAndLeftAlone) {
  ScriptedModel model({});
  SelfTextOptions options;
  options.num_windows = 8;
  options.window_tokens = 4;
  options.conversation = Turns();
  options.free_share = 0.25;
  options.eos_token_ids = {kEnd};
  const auto tokens = WriteSelfText(model, options);
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  ASSERT_EQ(tokens->size(), 32u);
  for (size_t window = 0; window < 8; ++window) {
    EXPECT_EQ((*tokens)[window * 4], 1);
    EXPECT_EQ((*tokens)[window * 4 + 1] == 2, window % 4 != 3) << window;
  }

  ScriptedModel ending({kEnd, 0, 0});
  options.num_windows = 1;
  options.free_share = 1;
  EXPECT_THAT(*WriteSelfText(ending, options), ElementsAre(1, kEnd, 21, 22));
}

TEST(SelfTextTest, IsAFunctionOfModelAndSeedWhateverTheNumberOfWindowsAtOnce) {
  TemporaryFolder folder;
  MakeTinyModel(TinyConfig(), {DType::kF32}).Write(folder.File("model"));
  SelfTextOptions options;
  options.num_windows = 5;
  options.window_tokens = 12;
  options.seed = 3;
  // Its words are sure of each other.
  options.temperatures = {50};
  options.min_p = 0;
  ModelOptions one = SmallOptions();
  one.max_step_tokens = one.max_step_logits = 1;
  ModelOptions few = SmallOptions();
  few.max_step_tokens = few.max_step_logits = 3;
  const auto alone = WriteSelfText(*MustLoadModel(folder.File("model"), 1, one), options);
  const auto together = WriteSelfText(*MustLoadModel(folder.File("model"), 1, few), options);
  ASSERT_TRUE(alone.ok()) << alone.status();
  ASSERT_TRUE(together.ok()) << together.status();
  EXPECT_EQ(*alone, *together);
  EXPECT_THAT(*alone, Each(Lt(61)));
  options.seed = 4;
  EXPECT_NE(*WriteSelfText(*MustLoadModel(folder.File("model"), 1, few), options), *alone);
}

TEST(SelfTextTest, SaysWhatIsWrongWithOptions) {
  ScriptedModel model({});
  SelfTextOptions options;
  EXPECT_EQ(WriteSelfText(model, options).status().code(), absl::StatusCode::kInvalidArgument);
  options.num_windows = 1;
  options.window_tokens = 1 << 30;
  EXPECT_THAT(std::string(WriteSelfText(model, options).status().message()),
              HasSubstr("tokens in a window"));
  options.window_tokens = 8;
  options.temperatures = {-1};
  EXPECT_THAT(std::string(WriteSelfText(model, options).status().message()),
              HasSubstr("temperature"));
  const std::atomic<bool> cancelled = true;
  options.temperatures = {1};
  options.cancelled = &cancelled;
  EXPECT_EQ(WriteSelfText(model, options).status().code(), absl::StatusCode::kCancelled);
}

TEST(ConversationTokensTest, AreWhatTheTemplateWritesBetweenMessages) {
  const auto tokenizer = Tokenizer::Load(TEST_DATA_DIR "/tokenizer/qwen2.json");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const auto source = ReadFile(TEST_DATA_DIR "/chat/templates/smollm2.jinja");
  ASSERT_TRUE(source.ok()) << source.status();
  const auto chat = ChatTemplate::Parse(*source, "smollm2.jinja", {});
  ASSERT_TRUE(chat.ok()) << chat.status();
  const auto tokens = FindConversationTokens(**chat, **tokenizer);
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  const auto text = [&](const std::vector<int32_t>& ids) {
    return (*tokenizer)->Decode(ids, /*skip_special_tokens=*/false);
  };
  EXPECT_EQ(text(tokens->beginning),
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
            "Face<|im_end|>\n<|im_start|>user\n");
  EXPECT_EQ(text(tokens->user_end), "<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(text(tokens->answer_end), "<|im_end|>\n<|im_start|>user\n");
  EXPECT_TRUE((*tokenizer)->IsSpecial(tokens->beginning.front()));
  EXPECT_TRUE((*tokenizer)->IsSpecial(tokens->user_end.front()));

  const auto silent = ChatTemplate::Parse("nothing", "silent.jinja", {});
  ASSERT_TRUE(silent.ok()) << silent.status();
  EXPECT_EQ(FindConversationTokens(**silent, **tokenizer).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(TokenWindowsTest, ReadsWhatWasWrittenAndRefusesOtherFiles) {
  TemporaryFolder folder;
  ThreadPool pool(1);
  const std::string tokenizer = folder.Write("tokenizer.json", "{}");
  for (const int32_t largest : {65535, 65536}) {
    const std::vector<int32_t> tokens = {1, 2, 3, 4, 5, largest};
    const std::string path = folder.File("windows.safetensors");
    ASSERT_TRUE(WriteTokenWindows(path, tokenizer, tokens, 3).ok());
    const auto windows = TokenWindows::Open(path, tokenizer, pool);
    ASSERT_TRUE(windows.ok()) << windows.status();
    EXPECT_EQ((*windows)->num_windows(), 2);
    EXPECT_EQ((*windows)->window_tokens(), 3);
    std::vector<int64_t> window(3);
    (*windows)->Copy(1, window.data());
    EXPECT_THAT(window, ElementsAre(4, 5, largest));

    const auto other = TokenWindows::Open(path, folder.Write("other.json", "{ }"), pool);
    EXPECT_EQ(other.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(other.status().message()), HasSubstr("tokenizer"));
  }
  ASSERT_TRUE(WriteSafetensors(folder.File("model.safetensors"), {}).ok());
  EXPECT_EQ(TokenWindows::Open(folder.File("model.safetensors"), tokenizer, pool).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace ultrasketch
