#include "engine/format/recorded_evaluation.h"

#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "engine/base/file.h"
#include "tests/base/temporary_folder.h"

namespace ultrasketch {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

class RecordedEvaluationTest : public testing::Test {
 protected:
  RecordedEvaluationTest() {
    std::filesystem::copy(SAMPLE_MODEL_DIR, folder_.path(),
                          std::filesystem::copy_options::recursive |
                              std::filesystem::copy_options::overwrite_existing);
    config_ = json::parse(*ReadFile(ConfigPath()));
  }

  std::string ConfigPath() const { return folder_.path() + "/config.json"; }

  void WriteCompressedConfig(const json& evaluation = nullptr) {
    json config = config_;
    config["quantization_config"] = {
        {"quant_method", "ultrasketch"}, {"version", 1}, {"codec", "dense"}};
    if (!evaluation.is_null()) config["quantization_config"]["evaluation"] = evaluation;
    ASSERT_TRUE(WriteFileAtomically(ConfigPath(), config.dump()).ok());
  }

  absl::StatusOr<std::optional<RecordedEvaluation>> Read() const {
    const auto checkpoint = Checkpoint::Open(folder_.path());
    if (!checkpoint.ok()) return checkpoint.status();
    return ReadRecordedEvaluation(**checkpoint);
  }

  TemporaryFolder folder_;
  json config_;
};

TEST_F(RecordedEvaluationTest, AModelWithoutARecordHasNone) {
  EXPECT_EQ(Read()->has_value(), false);
  WriteCompressedConfig();
  EXPECT_EQ(Read()->has_value(), false);
}

TEST_F(RecordedEvaluationTest, TheLastRecordIsReadBack) {
  WriteCompressedConfig();
  ASSERT_TRUE(RecordEvaluation(folder_.path(), {60, 34.7, 1000, 512}).ok());
  ASSERT_TRUE(RecordEvaluation(folder_.path(), {42.875, 34.625, 151421, 1024}).ok());
  const auto read = Read();
  ASSERT_TRUE(read.ok()) << read.status();
  ASSERT_TRUE(read->has_value());
  EXPECT_EQ((*read)->perplexity, 42.875);
  EXPECT_EQ((*read)->dense_perplexity, 34.625);
  EXPECT_EQ((*read)->tokens, 151421);
  EXPECT_EQ((*read)->context_tokens, 1024);
  // The rest of the file is as it was.
  json config = json::parse(*ReadFile(ConfigPath()));
  config.erase("quantization_config");
  EXPECT_EQ(config, config_);
}

TEST_F(RecordedEvaluationTest, AnUncompressedModelTakesNoRecord) {
  const absl::Status status = RecordEvaluation(folder_.path(), {42, 34, 100, 512});
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("expected a compressed model"));
  EXPECT_EQ(json::parse(*ReadFile(ConfigPath())), config_);
}

TEST_F(RecordedEvaluationTest, WhatCannotBeReadIsNotWritten) {
  WriteCompressedConfig();
  const std::string before = *ReadFile(ConfigPath());
  for (const RecordedEvaluation& bad :
       std::vector<RecordedEvaluation>{{std::numeric_limits<double>::infinity(), 34, 100, 512},
                                       {42, std::numeric_limits<double>::quiet_NaN(), 100, 512},
                                       {0.5, 34, 100, 512},
                                       {42, 34, 0, 512},
                                       {42, 34, 100, 0}}) {
    EXPECT_EQ(RecordEvaluation(folder_.path(), bad).code(), absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(*ReadFile(ConfigPath()), before);
}

TEST_F(RecordedEvaluationTest, ARecordOfAnotherFormIsRefusedByName) {
  const json good = {
      {"perplexity", 42.5}, {"dense_perplexity", 34.5}, {"tokens", 100}, {"context", 512}};
  const auto expect_refused = [&](const json& evaluation, const std::string& key) {
    WriteCompressedConfig(evaluation);
    const auto read = Read();
    EXPECT_EQ(read.status().code(), absl::StatusCode::kDataLoss) << evaluation;
    EXPECT_THAT(std::string(read.status().message()),
                HasSubstr("quantization_config.evaluation" + key + ": expected"));
  };
  expect_refused("good", "");
  for (const char* key : {"perplexity", "dense_perplexity", "tokens", "context"}) {
    for (const json& value : {json("1"), json(0), json(-3), json(false), json::array()}) {
      json evaluation = good;
      evaluation[key] = value;
      expect_refused(evaluation, std::string(".") + key);
    }
    json evaluation = good;
    evaluation.erase(key);
    expect_refused(evaluation, std::string(".") + key);
  }
  WriteCompressedConfig(good);
  EXPECT_TRUE(Read().ok());
}

}  // namespace
}  // namespace ultrasketch
