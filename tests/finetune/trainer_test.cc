// The trainer's executable, as a user runs it.
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "nlohmann/json.hpp"
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include "engine/base/file.h"
#include "tests/e2e/tool.h"
#include "tests/finetune/tiny_student.h"

namespace ultrasketch {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr char kSampleText[] = SAMPLE_MODEL_DIR "/../../demo/sample.txt";

int FreePort() {
  const int descriptor = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  EXPECT_EQ(bind(descriptor, reinterpret_cast<sockaddr*>(&address), size), 0);
  EXPECT_EQ(getsockname(descriptor, reinterpret_cast<sockaddr*>(&address), &size), 0);
  close(descriptor);
  return ntohs(address.sin_port);
}

class TrainerTest : public testing::Test {
 public:
  std::string Path(const std::string& name) const { return folder_.path() + "/" + name; }

  // `teacher` and `student` at those names.
  void WriteTinyModels() const {
    WriteTinyPair({{"vocab_size", 8192}}, TinyCodec::kFold, "int8", Path("teacher"),
                  Path("student"));
  }

  std::vector<std::string> Arguments(const std::string& teacher, const std::string& out,
                                     const std::vector<std::string>& more) const {
    std::vector<std::string> words = {"--teacher",   teacher,
                                      "--student",   Path("student"),
                                      "--text",      kSampleText,
                                      "--eval",      kSampleText,
                                      "--out",       Path(out),
                                      "--device",    "cpu",
                                      "--threads",   "1",
                                      "--log-every", "1",
                                      "--warmup",    "2",
                                      "--json",      "--eval-every",
                                      "0",           "--eval-max-tokens",
                                      "400"};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }

  std::vector<double> Losses(const std::string& out) const {
    std::vector<double> losses;
    const std::string text = *ReadFile(Path(out + ".training/training.jsonl"));
    for (const absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
      const auto record = nlohmann::json::parse(std::string(line));
      if (record.contains("loss")) losses.push_back(record["loss"].get<double>());
    }
    return losses;
  }

 private:
  TemporaryFolder folder_;
};

TEST_F(TrainerTest, AShortTrainingLowersThePerplexityManyTimes) {
  const Completed compressed =
      RunTool({"compress", "--model", SAMPLE_MODEL_DIR, "--out", Path("student"), "--threads", "2",
               "--calibration-windows", "0"});
  ASSERT_EQ(compressed.exit_code, 0) << compressed.err;
  std::vector<std::string> line = {"finetune"};
  for (const std::string& word :
       Arguments(SAMPLE_MODEL_DIR, "out", {"--steps", "30", "--batch", "4", "--context", "48"})) {
    line.push_back(word);
  }
  const Completed run = RunTool(line);
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const nlohmann::json report = ParseOutput(run);
  EXPECT_LT(report["perplexity_after"].get<double>(),
            report["perplexity_before"].get<double>() / 4);
  EXPECT_LT(report["perplexity_teacher"], report["perplexity_after"]);
  EXPECT_EQ(report["steps"], 30);
  EXPECT_EQ(report["tokens"], 30 * 4 * 48);
  EXPECT_GT(report["tokens_per_second"], 0);

  // What was measured is what is served.
  const Completed eval = RunTool({"eval", "--model", Path("out"), "--text", kSampleText,
                                  "--context", "48", "--max-tokens", "400", "--json"});
  ASSERT_EQ(eval.exit_code, 0) << eval.err;
  EXPECT_NEAR(
      report["perplexity_after"].get<double>() / ParseOutput(eval)["perplexity"].get<double>(), 1,
      1e-2);
  const auto bits = [](const std::string& folder) {
    return ParseOutput(RunTool({"inspect", folder, "--json"}))["bits_per_weight_linear"];
  };
  EXPECT_EQ(bits(Path("out")), bits(Path("student")));
}

TEST_F(TrainerTest, TwoProcessesGiveTheLossesOfOne) {
  WriteTinyModels();
  const auto command = [&](const std::string& out, std::vector<std::string> before) {
    before.push_back(ULTRASKETCH_FINETUNE_BINARY);
    for (const std::string& word :
         Arguments(Path("teacher"), out, {"--steps", "20", "--batch", "4", "--context", "32"})) {
      before.push_back(word);
    }
    return before;
  };
  const Completed one = RunProgram(command("one", {}));
  ASSERT_EQ(one.exit_code, 0) << one.err;

  const int port = FreePort();
  std::vector<std::unique_ptr<Process>> processes;
  for (int rank = 0; rank < 2; ++rank) {
    processes.push_back(std::make_unique<Process>(command(
        "two", {"/usr/bin/env", "MASTER_ADDR=127.0.0.1", absl::StrCat("MASTER_PORT=", port),
                "WORLD_SIZE=2", absl::StrCat("RANK=", rank), absl::StrCat("LOCAL_RANK=", rank)})));
  }
  for (const auto& process : processes) {
    EXPECT_EQ(process->Wait(absl::Minutes(1)), 0) << process->err();
  }
  EXPECT_THAT(processes[1]->out(), IsEmpty());
  const std::vector<double> expected = Losses("one");
  const std::vector<double> losses = Losses("two");
  ASSERT_EQ(losses.size(), expected.size());
  for (size_t i = 0; i < losses.size(); ++i) {
    EXPECT_NEAR(losses[i] / expected[i], 1, 1e-3) << "step " << i + 1;
  }
  const double alone = ParseOutput(one)["perplexity_after"];
  const double together = nlohmann::json::parse(processes[0]->out())["perplexity_after"];
  EXPECT_NEAR(together / alone, 1, 1e-2);
}

TEST_F(TrainerTest, InterruptingSavesAndResumingFinishes) {
  WriteTinyModels();
  std::vector<std::string> line = {ULTRASKETCH_FINETUNE_BINARY};
  for (const std::string& word :
       Arguments(Path("teacher"), "out", {"--steps", "120", "--batch", "2", "--context", "32"})) {
    line.push_back(word);
  }
  {
    Process process(line);
    ASSERT_TRUE(process.WaitFor(
        [](const std::string&, const std::string& err) {
          return err.find("perplexity") != std::string::npos;
        },
        absl::Minutes(1)))
        << process.err();
    process.Signal(SIGINT);
    EXPECT_EQ(process.Wait(absl::Minutes(1)), 1);
    const auto error = nlohmann::json::parse(process.out());
    EXPECT_EQ(error["error"]["code"], "CANCELLED");
    EXPECT_THAT(error["error"]["message"].get<std::string>(), HasSubstr("--resume"));
  }
  line.push_back("--resume");
  const Completed resumed = RunProgram(line);
  ASSERT_EQ(resumed.exit_code, 0) << resumed.err;
  EXPECT_EQ(ParseOutput(resumed)["steps"], 120);
  EXPECT_EQ(Losses("out").size(), 120u);
}

TEST_F(TrainerTest, TheTeacherWritesTheTextFirst) {
  const Completed compressed =
      RunTool({"compress", "--model", SAMPLE_MODEL_DIR, "--out", Path("student"), "--threads", "2",
               "--calibration-windows", "0"});
  ASSERT_EQ(compressed.exit_code, 0) << compressed.err;
  std::vector<std::string> line = {"finetune"};
  for (const std::string& word :
       Arguments(SAMPLE_MODEL_DIR, "out",
                 {"--steps", "4", "--batch", "4", "--context", "24", "--self-tokens", "480"})) {
    line.push_back(word == kSampleText && line.back() == "--text" ? "self" : word);
  }
  const Completed run = RunTool(line);
  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_EQ(ParseOutput(run)["steps"], 4);
  EXPECT_THAT(run.err, HasSubstr("20 windows"));
  const std::string file = Path("out.training/self-text.safetensors");
  EXPECT_TRUE(std::filesystem::exists(file));

  // Windows of another length are refused, and nothing is written over them.
  for (std::string& word : line) word = word == "24" ? "32" : word;
  line.push_back("--resume");
  const Completed other = RunTool(line);
  EXPECT_EQ(other.exit_code, 1);
  EXPECT_THAT(other.err, HasSubstr("windows of 24 tokens"));
}

TEST_F(TrainerTest, ExplainsItself) {
  const Completed help = RunTool({"finetune", "--help"});
  EXPECT_EQ(help.exit_code, 0);
  EXPECT_THAT(help.out, HasSubstr("Example"));
  EXPECT_THAT(help.out, HasSubstr("--json"));
  EXPECT_THAT(help.err, IsEmpty());
  EXPECT_THAT(RunTool({"--help"}).out, HasSubstr("finetune"));
}

TEST_F(TrainerTest, UsageErrorsExitWithTwoAndFailuresWithOne) {
  const std::vector<std::string> needed = {"finetune",  "--teacher",     SAMPLE_MODEL_DIR,
                                           "--student", Path("student"), "--text",
                                           kSampleText, "--out",         Path("out")};
  for (const std::vector<std::string>& words : std::vector<std::vector<std::string>>{
           {"--steps", "0"}, {"--steps", "5", "--tokens", "5"}, {"--from", "x"}}) {
    std::vector<std::string> line = needed;
    line.insert(line.end(), words.begin(), words.end());
    const Completed run = RunTool(line);
    EXPECT_EQ(run.exit_code, 2) << words.front();
    EXPECT_THAT(run.out, IsEmpty());
    EXPECT_THAT(run.err, HasSubstr("--help"));
  }
  EXPECT_EQ(RunTool({"finetune"}).exit_code, 2);
  std::vector<std::string> line = needed;
  line[2] = "/nonexistent/model";
  line.push_back("--json");
  const Completed run = RunTool(line);
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_EQ(ParseOutput(run)["error"]["code"], "NOT_FOUND");
  EXPECT_THAT(run.err, HasSubstr("/nonexistent/model"));
}

TEST_F(TrainerTest, SaysHowToBuildTheTrainerWhereItIsNotThere) {
  std::filesystem::copy(ULTRASKETCH_BINARY, Path("ultrasketch"));
  const Completed run = RunProgram({Path("ultrasketch"), "finetune", "--json", "--help"});
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_THAT(run.err, HasSubstr("libtorch-dev"));
  EXPECT_EQ(ParseOutput(run)["error"]["code"], "UNAVAILABLE");
}

}  // namespace
}  // namespace ultrasketch
