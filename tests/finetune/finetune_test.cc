// A training from beginning to end, on tiny models.
#include "engine/finetune/finetune.h"

#include <atomic>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "nlohmann/json.hpp"
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/base/file.h"
#include "engine/format/recorded_evaluation.h"
#include "tests/finetune/tiny_pair.h"

namespace ultrasketch {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

const nlohmann::json kConfig = {{"vocab_size", 8192}};
constexpr int64_t kSteps = 12;
constexpr int64_t kStepTokens = 4 * 16;

std::string Bytes(const TensorView& view) {
  return {reinterpret_cast<const char*>(view.data),
          static_cast<size_t>(view.num_elements() * ElementBytes(view.dtype))};
}

class FinetuneTest : public testing::Test {
 public:
  FinetuneTest() {
    std::string text;
    const char* subjects[] = {"The captain", "My sister", "An old man", "Nobody", "The horse"};
    const char* verbs[] = {"remembered", "crossed", "sold", "painted", "feared"};
    const char* objects[] = {"the river", "a letter", "his garden", "the long winter", "her song"};
    for (int i = 0; i < 250; ++i) {
      absl::StrAppend(&text, subjects[i % 5], " ", verbs[i / 5 % 5], " ", objects[i / 25 % 5],
                      i % 3 == 0 ? ", and was silent.\n" : ". ");
    }
    text_ = folder_.Write("text.txt", text);
  }

  FinetuneOptions Options(const TinyPair& pair, const std::string& out) const {
    FinetuneOptions options;
    options.teacher = pair.teacher();
    options.student = pair.student();
    options.text_files = {text_};
    options.out = folder_.File(out);
    options.num_steps = kSteps;
    options.batch_windows = 4;
    options.window_tokens = 16;
    options.log_every = 2;
    options.eval_every = 4;
    options.eval_max_tokens = 80;
    options.num_threads = 1;
    options.device = "cpu";
    return options;
  }

  // The log's records, less what depends on the clock.
  std::vector<nlohmann::json> Records(const std::string& out) const {
    std::vector<nlohmann::json> records;
    const std::string text = *ReadFile(folder_.File(out + ".training/training.jsonl"));
    for (const absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
      nlohmann::json record = nlohmann::json::parse(std::string(line));
      record.erase("seconds");
      record.erase("tokens_per_second");
      records.push_back(std::move(record));
    }
    return records;
  }

  std::vector<double> Losses(const std::string& out) const {
    std::vector<double> losses;
    for (const nlohmann::json& record : Records(out)) {
      if (record.contains("loss")) losses.push_back(record["loss"].get<double>());
    }
    return losses;
  }

  std::string Weights(const std::string& out) const {
    return *ReadFile(folder_.File(out + "/model.safetensors"));
  }

  TemporaryFolder folder_;
  std::string text_;
};

TEST_F(FinetuneTest, ComesNearerToTheTeacherWithEachCodec) {
  for (const TinyCodec codec : {TinyCodec::kFold, TinyCodec::kFoldPlanes, TinyCodec::kAbsMaxMin}) {
    const TinyPair pair(kConfig, codec);
    const std::string out = absl::StrCat("out", static_cast<int>(codec));
    FinetuneOptions options = Options(pair, out);
    options.num_steps = 40;
    options.eval_every = 0;
    const auto report = Finetune(options);
    ASSERT_TRUE(report.ok()) << report.status();
    const std::vector<double> losses = Losses(out);
    EXPECT_EQ(losses.size(), 20u);
    EXPECT_LT(losses.back(), 0.7 * losses.front()) << static_cast<int>(codec);
    EXPECT_EQ(report->last_loss, losses.back());
    EXPECT_EQ(report->steps, 40);
    EXPECT_EQ(report->tokens, 40 * kStepTokens);
    EXPECT_EQ(report->eval_tokens, 79);
    EXPECT_FALSE(report->interrupted);
    const auto written = Checkpoint::Open(folder_.File(out));
    ASSERT_TRUE(written.ok()) << written.status();
    const auto recorded = ReadRecordedEvaluation(**written);
    ASSERT_TRUE(recorded.ok()) << recorded.status();
    ASSERT_TRUE(recorded->has_value());
    EXPECT_EQ((*recorded)->perplexity, report->perplexity_after);
    EXPECT_EQ((*recorded)->dense_perplexity, report->perplexity_teacher);
    EXPECT_EQ((*recorded)->tokens, report->eval_tokens);
    for (const char* name : {"loss.svg", "perplexity.svg"}) {
      EXPECT_THAT(*ReadFile(folder_.File(absl::StrCat(out, ".training/", name))),
                  HasSubstr("<svg"));
    }
  }
}

TEST_F(FinetuneTest, TrainsWithEveryOption) {
  const TinyPair pair(
      {{"vocab_size", 8192}, {"model_type", "qwen2"}, {"tie_word_embeddings", false}},
      TinyCodec::kAbsMaxMin);
  const std::vector<std::function<void(FinetuneOptions&)>> changes = {
      [](FinetuneOptions& options) { options.hidden_loss = 1; },
      [](FinetuneOptions& options) { options.checkpoint_activations = true; },
      [](FinetuneOptions& options) { options.accumulation = 2; },
      [](FinetuneOptions& options) { options.train_tables = false; },
      [](FinetuneOptions& options) { options.start_from_teacher = true; },
      [](FinetuneOptions& options) { options.gradient_to_all = true; },
      [](FinetuneOptions& options) { options.precision = "bf16", options.num_steps = 6; },
      [&](FinetuneOptions& options) { options.eval_file = text_; },
      [&](FinetuneOptions& options) { options.cache = folder_.File("tokens"); }};
  for (size_t i = 0; i < changes.size(); ++i) {
    FinetuneOptions options = Options(pair, absl::StrCat("out", i));
    options.num_steps = 12;
    options.eval_every = 0;
    options.eval_max_tokens = 20;
    changes[i](options);
    const auto report = Finetune(options);
    ASSERT_TRUE(report.ok()) << i << ": " << report.status();
    const std::vector<double> losses = Losses(absl::StrCat("out", i));
    EXPECT_LT(losses.back(), losses.front()) << i;
  }
}

TEST_F(FinetuneTest, LeavesAFrozenEmbeddingAsItIs) {
  const TinyPair pair(kConfig, TinyCodec::kFold);
  FinetuneOptions options = Options(pair, "out");
  options.train_tables = false;
  options.eval_file = text_;
  ASSERT_TRUE(Finetune(options).ok());
  const auto out = *Checkpoint::Open(options.out);
  const auto student = pair.OpenStudent();
  const char* name = "model.embed_tokens.quantized";
  EXPECT_TRUE(Bytes(*out->Find(name)) == Bytes(*student->Find(name)));
}

TEST_F(FinetuneTest, TheSeedDecides) {
  const TinyPair pair(kConfig, TinyCodec::kFold);
  for (const char* out : {"one", "two"}) ASSERT_TRUE(Finetune(Options(pair, out)).ok());
  FinetuneOptions options = Options(pair, "other");
  options.seed = 1;
  ASSERT_TRUE(Finetune(options).ok());
  EXPECT_EQ(Records("one"), Records("two"));
  EXPECT_TRUE(Weights("one") == Weights("two"));
  EXPECT_NE(Losses("one"), Losses("other"));
}

// Interrupts a training at many a moment: in an evaluation, before one, and between records.
TEST_F(FinetuneTest, InterruptedAndResumedGivesTheSame) {
  for (const TinyCodec codec : {TinyCodec::kFold, TinyCodec::kAbsMaxMin}) {
    const TinyPair pair(kConfig, codec);
    const std::string whole = absl::StrCat("whole", static_cast<int>(codec));
    const auto expected = Finetune(Options(pair, whole));
    ASSERT_TRUE(expected.ok()) << expected.status();
    for (const int64_t moment : {1, 4, 5, -4}) {
      const std::string out = absl::StrCat("out", static_cast<int>(codec), "_", moment);
      FinetuneOptions options = Options(pair, out);
      std::atomic<bool> cancelled = false;
      int64_t steps = 0;
      options.cancelled = &cancelled;
      options.progress = [&](const FinetuneProgress& progress) {
        const bool training = progress.stage == FinetuneProgress::Stage::kTraining;
        if (training) steps = progress.done / kStepTokens;
        if (moment > 0 ? steps == moment : !training && steps == -moment) cancelled = true;
      };
      const auto interrupted = Finetune(options);
      ASSERT_TRUE(interrupted.ok()) << interrupted.status();
      EXPECT_TRUE(interrupted->interrupted);
      EXPECT_EQ(interrupted->steps, std::abs(moment));
      EXPECT_TRUE(Checkpoint::Open(options.out).ok());

      // A line that was being written when the lights went out.
      std::ofstream(options.out + ".training/training.jsonl", std::ios::app) << R"({"step": 9)";
      options.cancelled = nullptr;
      options.progress = nullptr;
      options.resume = true;
      const auto resumed = Finetune(options);
      ASSERT_TRUE(resumed.ok()) << resumed.status();
      EXPECT_FALSE(resumed->interrupted);
      EXPECT_EQ(Records(out), Records(whole)) << "after step " << moment;
      EXPECT_TRUE(Weights(out) == Weights(whole)) << "after step " << moment;
      EXPECT_EQ(resumed->perplexity_before, expected->perplexity_before);
      EXPECT_EQ(resumed->perplexity_after, expected->perplexity_after);
      EXPECT_EQ(resumed->best_step, expected->best_step);
    }
  }
}

TEST_F(FinetuneTest, GoesOnFromACheckpointOfItsTimer) {
  const TinyPair pair(kConfig, TinyCodec::kFold);
  ASSERT_TRUE(Finetune(Options(pair, "whole")).ok());
  // The folder of training as it was when it ended without notice after step 6 or 7.
  FinetuneOptions options = Options(pair, "out");
  options.checkpoint_seconds = 0;
  const std::string training = options.out + ".training";
  options.progress = [&](const FinetuneProgress& progress) {
    if (progress.stage == FinetuneProgress::Stage::kTraining && progress.done == 7 * kStepTokens) {
      fs::copy(training, folder_.File("saved"));
    }
  };
  ASSERT_TRUE(Finetune(options).ok());
  fs::remove_all(training);
  fs::remove_all(options.out);
  fs::rename(folder_.File("saved"), training);
  options.progress = nullptr;
  options.resume = true;
  ASSERT_TRUE(Finetune(options).ok());
  EXPECT_EQ(Records("out"), Records("whole"));
  EXPECT_TRUE(Weights("out") == Weights("whole"));
}

TEST_F(FinetuneTest, ResumingWithOtherOptionsNamesTheDifference) {
  const TinyPair pair(kConfig, TinyCodec::kFold);
  FinetuneOptions options = Options(pair, "out");
  options.resume = true;
  const absl::Status nothing = Finetune(options).status();
  EXPECT_EQ(nothing.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(nothing.message()), HasSubstr("no checkpoint to resume from"));
  options.resume = false;
  ASSERT_TRUE(Finetune(options).ok());
  options.resume = true;
  const TinyPair other({{"vocab_size", 8192}, {"rms_norm_eps", 1e-6}}, TinyCodec::kFoldPlanes);
  const std::vector<std::pair<std::string, std::function<void(FinetuneOptions&)>>> changes = {
      {"lr", [](FinetuneOptions& changed) { changed.latent_learning_rate = 1e-3; }},
      {"steps", [](FinetuneOptions& changed) { changed.num_steps = 13; }},
      {"seed", [](FinetuneOptions& changed) { changed.seed = 3; }},
      {"from", [](FinetuneOptions& changed) { changed.start_from_teacher = true; }},
      {"student", [&](FinetuneOptions& changed) { changed.student = other.student(); }},
      {"text", [&](FinetuneOptions& changed) { changed.text_files.push_back(text_); }}};
  for (const auto& [name, change] : changes) {
    FinetuneOptions changed = options;
    change(changed);
    const absl::Status status = Finetune(changed).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << name;
    EXPECT_THAT(std::string(status.message()), HasSubstr(absl::StrCat("with ", name, " = ")));
  }
  const auto again = Finetune(options);  // it had come to its end
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->steps, kSteps);
}

TEST_F(FinetuneTest, ReplacesNothingUnlessToldTo) {
  const TinyPair pair(kConfig, TinyCodec::kFold);
  FinetuneOptions options = Options(pair, "out");
  options.num_steps = 2;
  ASSERT_TRUE(Finetune(options).ok());
  EXPECT_EQ(Finetune(options).status().code(), absl::StatusCode::kAlreadyExists);
  fs::remove_all(options.out);
  const absl::Status checkpoint = Finetune(options).status();
  EXPECT_EQ(checkpoint.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(checkpoint.message()), HasSubstr("--resume"));
  options.overwrite = true;
  EXPECT_TRUE(Finetune(options).ok());
  EXPECT_TRUE(Finetune(options).ok());
  options.out = pair.student();
  EXPECT_EQ(Finetune(options).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(FinetuneTest, ADivergingTrainingStopsWithAdviceAndKeepsTheBest) {
  const TinyPair pair(kConfig, TinyCodec::kFold);
  FinetuneOptions options = Options(pair, "out");
  options.num_steps = 100;
  options.learning_rate = 50;
  options.table_learning_rate = 50;
  const absl::Status status = Finetune(options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kAborted) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("--lr"));
  const auto out = Checkpoint::Open(options.out);
  ASSERT_TRUE(out.ok()) << out.status();
  const auto student = pair.OpenStudent();
  const std::string name = "model.layers.0.mlp_input.bits";
  EXPECT_TRUE(Bytes(*(*out)->Find(name)) == Bytes(*student->Find(name)));
}

TEST_F(FinetuneTest, RefusesWhatMakesNoSense) {
  const TinyPair pair(kConfig, TinyCodec::kFold);
  const TinyPair other({{"vocab_size", 8192}, {"intermediate_size", 64}}, TinyCodec::kFold);
  const std::string empty = folder_.Write("empty", "");
  using Code = absl::StatusCode;
  struct Case {
    Code code;
    std::string message;
    std::function<void(FinetuneOptions&)> change;
  };
  const std::vector<Case> cases = {
      {Code::kNotFound, "/nothing", [](FinetuneOptions& o) { o.teacher = "/nothing"; }},
      {Code::kNotFound, "/nothing", [](FinetuneOptions& o) { o.student = "/nothing"; }},
      {Code::kNotFound, "/nothing", [](FinetuneOptions& o) { o.text_files = {"/nothing"}; }},
      {Code::kNotFound, "/nothing", [](FinetuneOptions& o) { o.eval_file = "/nothing"; }},
      {Code::kInvalidArgument, "no text", [](FinetuneOptions& o) { o.text_files.clear(); }},
      {Code::kInvalidArgument, "too short", [&](FinetuneOptions& o) { o.text_files = {empty}; }},
      {Code::kInvalidArgument, "0 tokens",
       [&](FinetuneOptions& o) { o.text_files = {empty}, o.eval_file = text_; }},
      {Code::kInvalidArgument, "compressed", [&](FinetuneOptions& o) { o.teacher = o.student; }},
      {Code::kInvalidArgument, "codec", [&](FinetuneOptions& o) { o.student = o.teacher; }},
      {Code::kInvalidArgument, "not a compressed form",
       [&](FinetuneOptions& o) { o.student = other.student(); }},
      {Code::kInvalidArgument, "at most the model's 512",
       [](FinetuneOptions& o) { o.window_tokens = 513; }},
      {Code::kInvalidArgument, "multiple", [](FinetuneOptions& o) { o.accumulation = 3; }},
      {Code::kInvalidArgument, "steps", [](FinetuneOptions& o) { o.num_steps = 0; }},
      {Code::kInvalidArgument, "lr",
       [](FinetuneOptions& o) {
         o.latent_learning_rate = std::numeric_limits<double>::quiet_NaN();
       }},
      {Code::kInvalidArgument, "clip", [](FinetuneOptions& o) { o.max_gradient_norm = 0; }},
      {Code::kInvalidArgument, "device", [](FinetuneOptions& o) { o.device = "tpu"; }},
      {Code::kInvalidArgument, "precision", [](FinetuneOptions& o) { o.precision = "int3"; }}};
  for (const Case& bad : cases) {
    FinetuneOptions options = Options(pair, "out");
    bad.change(options);
    const absl::Status status = Finetune(options).status();
    EXPECT_EQ(status.code(), bad.code) << bad.message << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(bad.message));
    EXPECT_FALSE(fs::exists(options.out));
  }
}

}  // namespace
}  // namespace ultrasketch
