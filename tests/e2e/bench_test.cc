// Load on a server of its own, measured by the command.
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

using ::testing::AllOf;
using ::testing::HasSubstr;

const std::string& SampleModel() {
  static const auto* const model = new std::string(absl::StrCat("sample=", SAMPLE_MODEL_DIR));
  return *model;
}

// `ultrasketch bench serve` of a short workload, as JSON.
nlohmann::json Bench(const TestServer& server, std::vector<std::string> options) {
  std::vector<std::string> line = {"bench",           "serve", "--target",        server.address(),
                                   "--prompt-tokens", "3:12",  "--output-tokens", "2:6",
                                   "--json"};
  line.insert(line.end(), options.begin(), options.end());
  const Completed run = RunTool(line);
  EXPECT_EQ(run.exit_code, 0) << run.err;
  return ParseOutput(run);
}

TEST(BenchTest, ServerAndEngineAreGivenTheSameLoad) {
  TestServer server({SampleModel()});
  const std::vector<std::string> load = {"--concurrency", "1,4", "--requests", "12", "--seed", "5"};
  const auto served = Bench(server, load);
  std::vector<std::string> line = {"bench",           "engine", "--model",         SAMPLE_MODEL_DIR,
                                   "--prompt-tokens", "3:12",   "--output-tokens", "2:6",
                                   "--json"};
  line.insert(line.end(), load.begin(), load.end());
  const auto alone = ParseOutput(RunTool(line));
  ASSERT_EQ(served["runs"].size(), 2u);
  ASSERT_EQ(alone["runs"].size(), 2u);
  EXPECT_EQ(served["model"]["name"], "sample");
  for (size_t i = 0; i < 2; ++i) {
    const auto& a = served["runs"][i];
    const auto& b = alone["runs"][i];
    EXPECT_EQ(a["loop"], "closed");
    EXPECT_EQ(a["concurrency"], i == 0 ? 1 : 4);
    EXPECT_EQ(a["requests"], b["requests"]);
    EXPECT_EQ(a["requests"]["ok"], 12);
    EXPECT_EQ(a["requests"]["warm_up"], i == 0 ? 1 : 4);
    EXPECT_EQ(a["tokens"]["prompt"], b["tokens"]["prompt"]);
    EXPECT_EQ(a["tokens"]["output"], b["tokens"]["output"]);
    for (const auto& run : {a, b}) {
      EXPECT_GT(run["output_tokens_per_second"].get<double>(), 0);
      EXPECT_GT(run["time_to_first_token_seconds"]["p50"].get<double>(), 0);
    }
  }
  EXPECT_EQ(server.Stop(), 0);
}

TEST(BenchTest, OpenLoopsAndTracesAreMeasuredAndDrawn) {
  TestServer server({SampleModel()});
  const TemporaryFolder folder;
  const std::string text = absl::StrCat(folder.path(), "/text");
  const std::string trace = absl::StrCat(folder.path(), "/trace");
  const std::string page = absl::StrCat(folder.path(), "/page.html");
  const std::string out = absl::StrCat(folder.path(), "/out.json");
  ASSERT_TRUE(WriteFileAtomically(text, "It was a dark and stormy night. ").ok());
  ASSERT_TRUE(WriteFileAtomically(
                  trace,
                  R"({"timestamp": 0, "input_length": 5, "output_length": 3})"
                  "\n"
                  R"({"timestamp": 1000, "input_length": 600, "output_length": 4, "hash_ids": [1]})"
                  "\n")
                  .ok());
  const auto open = Bench(server, {"--rate", "100,200", "--requests", "10", "--prompt-file", text,
                                   "--channels", "2", "--slo-ttft", "1m", "--html", page});
  ASSERT_EQ(open["runs"].size(), 2u);
  EXPECT_EQ(open["runs"][1]["rate"], 200);
  EXPECT_EQ(open["runs"][1]["requests"]["good"], 10);
  const auto html = ReadFile(page);
  ASSERT_TRUE(html.ok()) << html.status();
  EXPECT_THAT(*html, AllOf(HasSubstr("<svg"), HasSubstr("against throughput")));

  const auto traced = Bench(server, {"--trace", trace, "--trace-speed", "10", "--out", out,
                                     "--metrics", server.metrics_url()});
  EXPECT_EQ(traced["runs"][0]["loop"], "trace");
  EXPECT_EQ(traced["runs"][0]["tokens"]["prompt"], 605);
  EXPECT_EQ(traced["runs"][0]["tokens"]["output"], 7);
  EXPECT_EQ(
      traced["runs"][0]["server_counters"]["ultrasketch_generated_tokens_total{model=\"sample\"}"],
      7);
  const auto written = ReadFile(out);
  ASSERT_TRUE(written.ok()) << written.status();
  EXPECT_EQ(nlohmann::json::parse(*written), traced);
  EXPECT_EQ(server.Stop(), 0);
}

TEST(BenchTest, WhatCannotWorkFailsBeforeTheLoad) {
  TestServer server({SampleModel()});
  const auto fails = [&](std::vector<std::string> options, const std::string& code,
                         const std::string& part) {
    std::vector<std::string> line = {"bench", "serve", "--target", server.address(), "--json"};
    line.insert(line.end(), options.begin(), options.end());
    const Completed run = RunTool(line);
    EXPECT_EQ(run.exit_code, 1);
    const auto error = ParseOutput(run)["error"];
    EXPECT_EQ(error["code"], code);
    EXPECT_THAT(error["message"].get<std::string>(), HasSubstr(part));
  };
  fails({"--rate", "1", "--model", "other"}, "NOT_FOUND", "other");
  fails({"--rate", "1", "--prompt-tokens", "100000"}, "INVALID_ARGUMENT", "context");
  fails({"--trace", "/nonexistent/trace"}, "NOT_FOUND", "/nonexistent/trace");
  fails({"--rate", "1", "--prompt-file", "/nonexistent/text"}, "NOT_FOUND", "/nonexistent/text");
  fails({"--rate", "1", "--html", "/nonexistent/page"}, "NOT_FOUND", "/nonexistent/page");
  EXPECT_EQ(server.Metric("ultrasketch_generated_tokens_total", {"sample"}), 0);
  EXPECT_EQ(server.Stop(), 0);
}

}  // namespace
}  // namespace ultrasketch
