// From a dense checkpoint to text: the commands agree with each other on what they report.
#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/base/file.h"
#include "tests/e2e/server.h"
#include "tests/e2e/tool.h"

namespace ultrasketch {
namespace {

using ::testing::HasSubstr;

int64_t BytesIn(const std::string& folder) {
  int64_t bytes = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    bytes += static_cast<int64_t>(entry.file_size());
  }
  return bytes;
}

// Prose enough for a few windows.
std::string WriteText(const std::string& folder) {
  std::string text;
  for (int i = 0; i < 120; ++i) {
    absl::StrAppend(&text, "The ", i, (i % 2 == 0 ? " ships" : " houses"),
                    " that stood along the shore were old, and nobody in the village could say ",
                    "who had built them, or when; but the sea had been there before them.\n");
  }
  const std::string file = folder + "/text.txt";
  EXPECT_TRUE(WriteFileAtomically(file, text).ok());
  return file;
}

class PipelineOfCodecTest : public testing::TestWithParam<std::string> {};

INSTANTIATE_TEST_SUITE_P(Codecs, PipelineOfCodecTest, testing::Values("fold", "absmaxmin"),
                         [](const auto& test) { return test.param; });

TEST_P(PipelineOfCodecTest, CommandsAgreeOnACompressedModel) {
  const std::string codec = GetParam();
  const TemporaryFolder folder;
  const std::string text = WriteText(folder.path());
  const std::string out = folder.path() + "/compressed";
  const auto run = [](std::vector<std::string> arguments) {
    arguments.push_back("--json");
    const Completed completed = RunTool(arguments);
    EXPECT_EQ(completed.exit_code, 0) << completed.err;
    return ParseOutput(completed);
  };

  const auto compressed =
      run({"compress", "--model", SAMPLE_MODEL_DIR, "--out", out, "--codec", codec, "--calibration",
           text, "--calibration-windows", "4", "--seed", "7"});
  EXPECT_LE(compressed["bits_per_weight_linear"], 0.5);
  EXPECT_GT(compressed["bits_per_weight_linear"], 0.4);
  EXPECT_EQ(compressed["bytes"], BytesIn(out));
  EXPECT_GT(compressed["seconds"], 0);

  const auto inspected = run({"inspect", out});
  EXPECT_EQ(inspected["bits_per_weight_linear"], compressed["bits_per_weight_linear"]);
  EXPECT_EQ(inspected["bits_per_weight_file"], compressed["bits_per_weight_file"]);
  EXPECT_EQ(inspected["codec"], codec);
  int64_t site_bytes = 0;
  for (const auto& site : inspected["sites"]) site_bytes += site["bytes"].get<int64_t>();
  EXPECT_EQ(site_bytes, inspected["linear_bytes"]);
  const auto dense = run({"inspect", SAMPLE_MODEL_DIR});
  EXPECT_EQ(inspected["parameters"], dense["parameters"]);
  EXPECT_EQ(inspected["sites"].size(), dense["sites"].size());

  // The whole file system agrees.
  const double file_bits =
      static_cast<double>(BytesIn(out)) * 8 / inspected["parameters"].get<double>();
  EXPECT_NEAR(inspected["bits_per_weight_file"].get<double>(), file_bits, 1e-9);

  // Another text than it was fitted to.
  const std::string other_text = absl::StrCat(SAMPLE_MODEL_DIR, "/../../demo/sample.txt");
  const auto evaluated = run({"eval", "--model", out, "--text", other_text, "--context", "128"});
  const auto evaluated_dense =
      run({"eval", "--model", SAMPLE_MODEL_DIR, "--text", other_text, "--context", "128"});
  EXPECT_EQ(evaluated["tokens"], evaluated_dense["tokens"]);
  EXPECT_GT(evaluated["perplexity"], evaluated_dense["perplexity"]);
  // Better than guessing among the vocabulary.
  EXPECT_LT(evaluated["nll"].get<double>(), std::log(8192.0));

  const std::vector<std::string> options = {"--prompt", "The ships", "--max-tokens",
                                            "16",       "--seed",    "2"};
  const auto generate = [&](std::vector<std::string> where) {
    where.insert(where.begin(), "generate");
    where.insert(where.end(), options.begin(), options.end());
    return run(where);
  };
  const auto local = generate({"--model", out});
  TestServer server({absl::StrCat("dense=", SAMPLE_MODEL_DIR), absl::StrCat("half=", out)});
  const auto remote = generate({"--target", server.address(), "--model", "half"});
  EXPECT_EQ(remote["text"], local["text"]);
  EXPECT_EQ(remote["token_ids"], local["token_ids"]);

  const auto models = run({"models", "list", "--target", server.address()})["models"];
  ASSERT_EQ(models.size(), 2u);
  EXPECT_EQ(models[1]["name"], "half");
  EXPECT_EQ(models[1]["codec"], codec);
  EXPECT_EQ(models[1]["bits_per_weight_linear"], compressed["bits_per_weight_linear"]);
  EXPECT_EQ(models[1]["bits_per_weight_file"], compressed["bits_per_weight_file"]);
  // Prometheus prints 16 digits.
  EXPECT_DOUBLE_EQ(
      8 * server.Metric("ultrasketch_bytes_per_weight", {"\"half\"", "\"linear\""}).value_or(0),
      compressed["bits_per_weight_linear"].get<double>());
  EXPECT_EQ(server.Stop(), 0);

  // Compressing again does not overwrite what is there.
  const Completed again = RunTool({"compress", "--model", SAMPLE_MODEL_DIR, "--out", out});
  EXPECT_EQ(again.exit_code, 1);
  EXPECT_THAT(again.err, HasSubstr(out));
}

TEST(PipelineTest, TheReportHasTheNumbersOfEvaluation) {
  const TemporaryFolder folder;
  const std::string text = WriteText(folder.path());
  const std::string out = folder.path() + "/compressed";
  const Completed completed =
      RunTool({"compress", "--model", SAMPLE_MODEL_DIR, "--out", out, "--calibration", text,
               "--calibration-windows", "2", "--report", folder.path() + "/report.html", "--eval",
               text, "--eval-context", "100", "--eval-max-tokens", "777", "--json"});
  ASSERT_EQ(completed.exit_code, 0) << completed.err;
  const auto compressed = ParseOutput(completed);
  const auto evaluate = [&](const std::string& model) {
    return ParseOutput(RunTool({"eval", "--model", model, "--text", text, "--context", "100",
                                "--max-tokens", "777", "--json"}));
  };
  const auto dense = evaluate(SAMPLE_MODEL_DIR);
  const auto after = evaluate(out);
  EXPECT_EQ(compressed["perplexity_before"], dense["perplexity"]);
  EXPECT_EQ(compressed["perplexity_after"], after["perplexity"]);
  EXPECT_EQ(compressed["eval_tokens"], 776);
  EXPECT_EQ(compressed["bytes"], BytesIn(out));

  // Who serves the model is told.
  TestServer server({absl::StrCat("half=", out)});
  const auto models =
      ParseOutput(RunTool({"models", "list", "--target", server.address(), "--json"}))["models"];
  ASSERT_EQ(models.size(), 1u);
  EXPECT_EQ(models[0]["evaluation"]["perplexity"], compressed["perplexity_after"]);
  EXPECT_EQ(models[0]["evaluation"]["dense_perplexity"], compressed["perplexity_before"]);
  EXPECT_EQ(models[0]["evaluation"]["tokens"], 776);
  EXPECT_EQ(models[0]["evaluation"]["context"], 100);
  EXPECT_NE(models[0]["weights_checksum"], "");

  const auto json = nlohmann::json::parse(*ReadFile(folder.path() + "/report.json"));
  EXPECT_EQ(json["evaluation"]["perplexity_before"], dense["perplexity"]);
  EXPECT_EQ(json["evaluation"]["perplexity_after"], after["perplexity"]);
  EXPECT_EQ(json["evaluation"]["text"], "text.txt");
  EXPECT_EQ(json["bits_per_weight_linear"], compressed["bits_per_weight_linear"]);
  EXPECT_EQ(json["sites"].size(), compressed["sites"].size());
  EXPECT_EQ(json["dense_bytes"],
            ParseOutput(RunTool({"inspect", SAMPLE_MODEL_DIR, "--json"}))["bytes"]);
  const std::string html = *ReadFile(folder.path() + "/report.html");
  EXPECT_THAT(html, HasSubstr("<!DOCTYPE html>"));
  EXPECT_THAT(html, HasSubstr("classics-6m at 0."));
}

TEST(PipelineTest, AReportThatCannotBeWrittenStopsTheWorkBeforeItBegins) {
  const TemporaryFolder folder;
  const std::string out = folder.path() + "/compressed";
  const auto expect_failure = [&](std::vector<std::string> options, const std::string& part) {
    options.insert(options.begin(), {"compress", "--model", SAMPLE_MODEL_DIR, "--out", out});
    const Completed completed = RunTool(options);
    EXPECT_EQ(completed.exit_code, 1);
    EXPECT_THAT(completed.err, HasSubstr(part));
    EXPECT_FALSE(std::filesystem::exists(out));
  };
  expect_failure({"--report", folder.path() + "/none/report"}, "none/report.html");
  expect_failure({"--eval", folder.path() + "/none.txt"}, "none.txt");
  const std::string short_text = folder.path() + "/short.txt";
  ASSERT_TRUE(WriteFileAtomically(short_text, "A").ok());
  expect_failure({"--eval", short_text}, "short.txt: expected a text of at least 2 tokens");
}

TEST(PipelineTest, TheSameSeedGivesTheSameFiles) {
  const TemporaryFolder folder;
  const std::string text = WriteText(folder.path());
  const auto compress = [&](const std::string& out, const std::string& threads) {
    const Completed run =
        RunTool({"compress", "--model", SAMPLE_MODEL_DIR, "--out", folder.path() + "/" + out,
                 "--calibration", text, "--calibration-windows", "2", "--threads", threads});
    ASSERT_EQ(run.exit_code, 0) << run.err;
  };
  compress("one", "1");
  compress("two", "2");
  const auto one = ReadFile(folder.path() + "/one/model.safetensors");
  const auto two = ReadFile(folder.path() + "/two/model.safetensors");
  ASSERT_TRUE(one.ok() && two.ok());
  EXPECT_TRUE(*one == *two);
}

}  // namespace
}  // namespace ultrasketch
