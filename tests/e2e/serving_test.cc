// The server and the command together.
#include <signal.h>

#include <atomic>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/base/file.h"
#include "tests/e2e/server.h"
#include "tests/e2e/tool.h"

namespace ultrasketch {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;

const std::string& SampleModel() {
  static const auto* const model = new std::string(absl::StrCat("sample=", SAMPLE_MODEL_DIR));
  return *model;
}

client::GenerateRequest Request(const std::string& prompt, int max_tokens, uint64_t seed) {
  client::GenerateRequest request;
  request.prompt = prompt;
  request.max_tokens = max_tokens;
  request.seed = seed;
  request.ignore_eos = true;
  return request;
}

TEST(ServingTest, LocalAndRemoteGiveTheSameText) {
  TestServer server({SampleModel()});
  std::vector<std::string> options = {"--prompt", "It was a bright", "--max-tokens", "48", "--seed",
                                      "11",       "--json",          "--logprobs",   "2"};
  const auto generate = [&](std::vector<std::string> where) {
    where.insert(where.begin(), "generate");
    where.insert(where.end(), options.begin(), options.end());
    const Completed run = RunTool(where);
    EXPECT_EQ(run.exit_code, 0) << run.err;
    return ParseOutput(run);
  };
  const auto local = generate({"--model", SAMPLE_MODEL_DIR});
  const auto remote = generate({"--target", server.address()});
  const auto named = generate({"--target", server.address(), "--model", "sample"});
  for (const char* key : {"text", "token_ids", "finish_reason", "usage", "seed", "logprobs"}) {
    EXPECT_EQ(remote[key], local[key]) << key;
    EXPECT_EQ(named[key], local[key]) << key;
  }
  EXPECT_EQ(server.Stop(), 0);
}

TEST(ServingTest, SpecialTokensCanStopAndScoresJoin) {
  TestServer server({SampleModel()});
  const auto client = server.Connect();
  client::GenerateRequest request = Request("It was", 20, 1);
  request.logit_bias = {{0, 100.0f}};
  request.stop = {"<|endoftext|>"};
  const auto response = client->Generate(request);
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(response->completions.front().token_ids, std::vector<int32_t>{0});
  EXPECT_EQ(response->completions.front().finish_reason, client::FinishReason::kStop);
  EXPECT_EQ(response->completions.front().stop_string, "<|endoftext|>");

  client::ScoreRequest score_request;
  score_request.text = "It was a dark — and stormy — night.";
  score_request.top_logprobs = 2;
  const auto score = client->ScoreText(score_request);
  ASSERT_TRUE(score.ok()) << score.status();
  std::string text = "It";
  std::string bytes = "It";
  for (const client::TokenLogprobs& entry : score->logprobs) {
    text += entry.token.text;
    bytes += entry.token.bytes;
    EXPECT_EQ(entry.top.size(), 2u);
  }
  EXPECT_EQ(text, std::get<std::string>(score_request.text));
  EXPECT_EQ(bytes, std::get<std::string>(score_request.text));
}

TEST(ServingTest, LogsWhatAModelsFilesContradict) {
  const TemporaryFolder folder;
  for (const auto& entry : std::filesystem::directory_iterator(SAMPLE_MODEL_DIR)) {
    if (entry.is_regular_file()) std::filesystem::copy(entry.path(), folder.path());
  }
  const std::string path = folder.path() + "/generation_config.json";
  ASSERT_TRUE(WriteFileAtomically(path, R"({"top_p": 3, "eos_token_id": [0, 9999999]})").ok());
  TestServer server({absl::StrCat("odd=", folder.path()), SampleModel()});
  const std::string log = server.process().err();
  for (const char* key : {"top_p", "eos_token_id"}) {
    EXPECT_THAT(log, ContainsRegex(absl::StrCat("level=warning event=model_warning model=odd "
                                                "message=\"",
                                                path, ": ", key)));
  }
  EXPECT_EQ(server.Stop(), 0);
}

TEST(ServingTest, ConcurrentStreamsGiveTheTextOfEachAlone) {
  TestServer server({SampleModel()});
  const auto client = server.Connect();
  const std::vector<client::GenerateRequest> requests = {
      Request("It was a bright", 64, 11), Request("It was a bright", 64, 11),
      Request("The captain said that", 80, 12), Request("\"No,\" replied", 40, 11)};
  std::vector<std::string> alone;
  for (const auto& request : requests) {
    const auto response = client->GenerateStream(request, nullptr);
    ASSERT_TRUE(response.ok()) << response.status();
    alone.push_back(response->completions.front().text);
  }
  EXPECT_EQ(alone[0], alone[1]);
  EXPECT_NE(alone[0], alone[2]);

  for (int round = 0; round < 3; ++round) {
    std::vector<std::string> together(requests.size());
    std::atomic<double> largest_batch = 0;
    std::vector<std::thread> threads;
    for (size_t i = 0; i < requests.size(); ++i) {
      threads.emplace_back([&, i] {
        const auto response = server.Connect()->GenerateStream(requests[i], nullptr);
        ASSERT_TRUE(response.ok()) << response.status();
        together[i] = response->completions.front().text;
        if (response->timing.mean_batch_size > 1) largest_batch = response->timing.mean_batch_size;
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(together, alone);
    EXPECT_GT(largest_batch, 1) << "the streams never shared a step";
  }
}

TEST(ServingTest, DrainFinishesTheRequestInFlight) {
  TestServer server({SampleModel()});
  const auto client = server.Connect();
  bool signalled = false;
  const auto response =
      client->GenerateStream(Request("Once", 400, 1), [&](const client::GenerateDelta&) {
        if (!signalled) server.process().Signal(SIGTERM);
        signalled = true;
      });
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_TRUE(signalled);
  EXPECT_EQ(response->usage.completion_tokens, 400);
  EXPECT_EQ(server.process().Wait(absl::Seconds(20)), 0);
  // Nobody is served any more.
  EXPECT_TRUE(absl::IsUnavailable(server.Connect()->ListModels().status()));
}

TEST(ServingTest, AKilledClientsBlocksReturn) {
  TestServer server({SampleModel()});
  Process client({ULTRASKETCH_BINARY, "generate", "--target", server.address(), "--prompt", "It",
                  "--ignore-eos", "--max-tokens", "1000", "--n", "8"});
  // Wait until its sequences hold blocks.
  bool busy = false;
  for (int i = 0; i < 500 && !busy; ++i) {
    busy = server.Metric("ultrasketch_kv_blocks", {"used"}).value_or(0) > 0;
    absl::SleepFor(absl::Milliseconds(10));
  }
  EXPECT_TRUE(busy);
  client.Signal(SIGKILL);
  EXPECT_EQ(client.Wait(absl::Seconds(10)), 128 + SIGKILL);
  EXPECT_TRUE(server.WaitUntilIdle("sample")) << server.Metrics();
  EXPECT_EQ(server.Stop(), 0);
}

TEST(ServingTest, InterruptingTheCommandCancelsTheRequest) {
  TestServer server({SampleModel()});
  Process client({ULTRASKETCH_BINARY, "generate", "--target", server.address(), "--prompt", "It",
                  "--ignore-eos", "--max-tokens", "1000"});
  ASSERT_TRUE(client.WaitFor([](const std::string& out, const auto&) { return !out.empty(); },
                             absl::Seconds(20)));
  client.Signal(SIGINT);
  EXPECT_EQ(client.Wait(absl::Seconds(10)), 1);
  EXPECT_THAT(client.err(), HasSubstr("interrupted"));
  EXPECT_TRUE(server.WaitUntilIdle("sample")) << server.Metrics();
}

TEST(ServingTest, ATimeoutIsADeadline) {
  TestServer server({SampleModel()});
  const Completed run =
      RunTool({"generate", "--target", server.address(), "--prompt", "It", "--ignore-eos",
               "--max-tokens", "1000", "--timeout", "0.05", "--json"});
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_EQ(ParseOutput(run)["error"]["code"], "DEADLINE_EXCEEDED");
  EXPECT_TRUE(server.WaitUntilIdle("sample")) << server.Metrics();
}

TEST(ServingTest, EveryCodeAndReasonIsCountedFromTheStart) {
  TestServer server({SampleModel()});
  for (const char* code : {"OK", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "UNAUTHENTICATED"}) {
    EXPECT_EQ(server.Metric("ultrasketch_requests_total",
                            {"model=\"sample\"", absl::StrCat("code=\"", code, "\"")}),
              0)
        << code;
  }
  EXPECT_EQ(server.Metric("ultrasketch_rejected_requests_total",
                          {"model=\"\"", "reason=\"unknown_model\""}),
            0);
  EXPECT_EQ(server.Metric("ultrasketch_bytes_per_weight", {"scope=\"linear\""}), 2);
}

TEST(ServingTest, TheDrainTimeIsBelowTheGraceOfKubernetes) {
  const std::string help = RunProgram({ULTRASKETCHD_BINARY, "--help"}).out;
  EXPECT_THAT(help, testing::ContainsRegex("--drain-seconds [^\n]*25"));
  EXPECT_THAT(help, HasSubstr("docker stop"));
}

TEST(ServingTest, ListsItsModels) {
  TestServer server({SampleModel(), absl::StrCat("other=", SAMPLE_MODEL_DIR)});
  const Completed run = RunTool({"models", "list", "--target", server.address(), "--json"});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const auto models = ParseOutput(run)["models"];
  ASSERT_EQ(models.size(), 2u);
  EXPECT_EQ(models[0]["name"], "other");
  EXPECT_EQ(models[1]["name"], "sample");
  for (const auto& model : models) {
    EXPECT_EQ(model["state"], "ready");
    EXPECT_EQ(model["codec"], "dense");
    EXPECT_EQ(model["bits_per_weight_linear"], 16.0);
    EXPECT_EQ(model["max_context_tokens"], 1024);
    EXPECT_EQ(model["kv_cache_type"], "fp16");
  }
  const Completed table = RunTool({"models", "list", "--target", server.address()});
  EXPECT_THAT(table.out, HasSubstr("sample"));
  // Which of two models is meant has to be said.
  const Completed unnamed =
      RunTool({"generate", "--target", server.address(), "--prompt", "a", "--json"});
  EXPECT_EQ(unnamed.exit_code, 1);
  EXPECT_EQ(ParseOutput(unnamed)["error"]["code"], "INVALID_ARGUMENT");
}

TEST(ServingTest, HealthIsAnExitCode) {
  TestServer server({SampleModel()});
  const auto health = [&](std::vector<std::string> options) {
    options.insert(options.begin(), {"health", "--target", server.address()});
    return RunTool(options);
  };
  const Completed all = health({});
  EXPECT_EQ(all.exit_code, 0) << all.err;
  EXPECT_EQ(all.out, "SERVING\n");
  const Completed sample = health({"--service", "sample", "--json"});
  EXPECT_EQ(sample.exit_code, 0) << sample.err;
  EXPECT_EQ(ParseOutput(sample)["status"], "SERVING");
  const Completed other = health({"--service", "other", "--json"});
  EXPECT_EQ(other.exit_code, 1);
  EXPECT_EQ(ParseOutput(other)["error"]["code"], "NOT_FOUND");
  EXPECT_EQ(server.Stop(), 0);
  EXPECT_EQ(health({}).exit_code, 1);
}

TEST(ServingTest, HealthWaitsForWhatIsToCome) {
  const TemporaryFolder repository;
  TestServer server({SampleModel()}, {"--model-repository", repository.path()});
  const std::vector<std::string> line = {ULTRASKETCH_BINARY, "health", "--target", server.address(),
                                         "--service",        "late",   "--wait"};
  const auto with = [&](const std::string& seconds) {
    std::vector<std::string> arguments = line;
    arguments.push_back(seconds);
    return arguments;
  };
  const absl::Time begin = absl::Now();
  const Completed in_vain = RunProgram(with("0.5"));
  EXPECT_EQ(in_vain.exit_code, 1);
  EXPECT_GE(absl::Now() - begin, absl::Milliseconds(500));
  EXPECT_THAT(in_vain.err, ::testing::HasSubstr("late"));

  Process waiting(with("120"));
  std::filesystem::create_directory_symlink(std::filesystem::path(SAMPLE_MODEL_DIR),
                                            std::filesystem::path(repository.path()) / "late");
  const auto loaded = server.Connect()->LoadModel("late");
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(waiting.Wait(absl::Seconds(120)), 0) << waiting.err();
  EXPECT_EQ(waiting.out(), "SERVING\n");
}

}  // namespace
}  // namespace ultrasketch
