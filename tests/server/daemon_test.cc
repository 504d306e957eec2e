// The executable: start, serve, errors before serving, stop.
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include <grpcpp/grpcpp.h>

#include "tests/base/temporary_folder.h"
#include "tests/server/daemon_process.h"
#include "tests/server/raw_grpc.h"
#include "tests/server/test_server.h"
#include "ultrasketch/v1/generation.grpc.pb.h"
#include "ultrasketch/v1/model.grpc.pb.h"

namespace ultrasketch {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr char kSampleModel[] = "small=" SAMPLE_MODEL_DIR;

TEST(DaemonTest, ServesARepositoryAndStopsWhenAsked) {
  const std::string repository = std::filesystem::path(SAMPLE_MODEL_DIR).parent_path();
  Daemon daemon({"--model-repository", repository});
  const std::string loaded = daemon.AwaitLine("event=model_loaded model=classics-6m");
  EXPECT_EQ(Daemon::ValueOf(loaded, "codec"), "dense");
  EXPECT_EQ(Daemon::ValueOf(loaded, "bits_per_weight_linear"), "16.000");
  EXPECT_EQ(Daemon::ValueOf(loaded, "context_tokens"), "1024");
  EXPECT_NE(Daemon::ValueOf(loaded, "load_seconds"), "");
  daemon.AwaitServing();

  grpc::ClientContext context;
  v1::GenerateRequest request = Request("It was a dark and", 10);
  request.set_model("classics-6m");
  const StreamOutput output = ReadAll(*daemon.stub().GenerateStream(&context, request));
  EXPECT_TRUE(output.status.ok()) << output.status.error_message();
  EXPECT_EQ(output.token_ids.at(0).size(), 10u);
  EXPECT_THAT(ExchangeBytes(daemon.metrics_port(),
                            "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
              HasSubstr(R"(ultrasketch_generated_tokens_total{model="classics-6m"} 10)"));

  daemon.Signal(SIGTERM);
  EXPECT_EQ(daemon.WaitForEnd(), 0);
  EXPECT_THAT(daemon.output(), AllOf(HasSubstr("event=draining"), HasSubstr("event=stopped")));
}

TEST(DaemonTest, DrainsBeforeItStops) {
  Daemon daemon({"--model", kSampleModel, "--drain-seconds", "60"});
  daemon.AwaitServing();
  grpc::ClientContext context;
  v1::GenerateRequest request = Request("A long story", 300);
  request.set_ignore_eos(true);
  const auto reader = daemon.stub().GenerateStream(&context, request);
  v1::GenerateStreamResponse message;
  ASSERT_TRUE(reader->Read(&message));
  const size_t num_before = static_cast<size_t>(message.delta().token_ids_size());
  daemon.Signal(SIGHUP);  // as SIGTERM
  ASSERT_NE(daemon.AwaitLine("event=draining"), "");
  const StreamOutput output = ReadAll(*reader);
  EXPECT_TRUE(output.status.ok()) << output.status.error_message();
  EXPECT_EQ(output.token_ids.at(0).size() + num_before, 300u);
  EXPECT_EQ(daemon.WaitForEnd(), 0);
}

TEST(DaemonTest, ASecondSignalStopsAtOnce) {
  Daemon daemon({"--model", kSampleModel, "--drain-seconds", "3600"});
  daemon.AwaitServing();
  // More than can end by itself soon.
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateStreamResponse>>> readers;
  for (int i = 0; i < 64; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    v1::GenerateRequest request = Request("A very long story", 1000);
    request.set_ignore_eos(true);
    readers.push_back(daemon.stub().GenerateStream(contexts.back().get(), request));
  }
  v1::GenerateStreamResponse message;
  ASSERT_TRUE(readers[0]->Read(&message));
  daemon.Signal(SIGINT);
  ASSERT_NE(daemon.AwaitLine("event=draining"), "");
  daemon.Signal(SIGINT);
  int num_unavailable = 0;
  for (auto& reader : readers) {
    if (ReadAll(*reader).status.error_code() == grpc::StatusCode::UNAVAILABLE) ++num_unavailable;
  }
  EXPECT_GT(num_unavailable, 0);
  EXPECT_EQ(daemon.WaitForEnd(), 0);
}

TEST(DaemonTest, TakenPortsAreErrorsBeforeAnythingIsLoaded) {
  Daemon first({"--model", kSampleModel});
  first.AwaitServing();
  const std::string metrics = "127.0.0.1:" + std::to_string(first.metrics_port());
  ExpectFailure({"--model", kSampleModel, "--listen", first.listen(), "--metrics-listen", "none"},
                1, "cannot listen on " + first.listen() + ": Address already in use", false);
  ExpectFailure({"--model", kSampleModel, "--listen", "127.0.0.1:0", "--metrics-listen", metrics},
                1, "cannot listen on " + metrics + ": Address already in use", false);
  grpc::ClientContext context;
  EXPECT_TRUE(
      ReadAll(*first.stub().GenerateStream(&context, Request("still here", 2))).status.ok());
}

TEST(DaemonTest, NothingToServeIsAnError) {
  ExpectFailure({"--model", "a=/nonexistent/folder"}, 1, "/nonexistent/folder");
  ExpectFailure({"--model-repository", "/nonexistent/folder"}, 1, "/nonexistent/folder");
  ExpectFailure({"--model", kSampleModel, "--memory-limit", "1MB"}, 1, "does not fit");
}

class RepositoryTest : public ::testing::Test {
 protected:
  std::filesystem::path Copy(const std::string& name) {
    const std::filesystem::path folder = std::filesystem::path(repository_.path()) / name;
    std::filesystem::copy(SAMPLE_MODEL_DIR, folder);
    return folder;
  }
  static void Break(const std::filesystem::path& folder) {
    const std::filesystem::path weights = folder / "model.safetensors";
    std::filesystem::resize_file(weights, std::filesystem::file_size(weights) / 2);
  }
  static std::string State(v1::ModelService::Stub& stub, const std::string& name) {
    grpc::ClientContext context;
    v1::GetModelRequest request;
    request.set_name(name);
    v1::Model model;
    const grpc::Status status = stub.GetModel(&context, request, &model);
    return status.ok() ? v1::ModelState_Name(model.state()) : "";
  }
  static std::unique_ptr<v1::ModelService::Stub> Models(const Daemon& daemon) {
    return v1::ModelService::NewStub(
        grpc::CreateChannel("ipv4:" + daemon.listen(), grpc::InsecureChannelCredentials()));
  }

  TemporaryFolder repository_;
};

TEST_F(RepositoryTest, ABrokenModelIsFailedAndTheOthersServe) {
  Copy("good");
  Break(Copy("bad"));
  Daemon daemon({"--model-repository", repository_.path()});
  const std::string failed = daemon.AwaitLine("event=model_failed model=bad");
  EXPECT_THAT(failed, HasSubstr("model.safetensors"));
  daemon.AwaitServing();
  const auto models = Models(daemon);
  EXPECT_EQ(State(*models, "good"), "MODEL_STATE_READY");
  EXPECT_EQ(State(*models, "bad"), "MODEL_STATE_FAILED");
  EXPECT_THAT(ExchangeBytes(daemon.metrics_port(),
                            "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
              AllOf(HasSubstr(R"(ultrasketch_model_state{model="bad",state="FAILED"} 1)"),
                    HasSubstr(R"(ultrasketch_model_state{model="good",state="READY"} 1)"),
                    HasSubstr(R"(ultrasketch_model_loads_total{result="failed"} 1)")));
  grpc::ClientContext context;
  v1::GenerateRequest request = Request("It was", 2);
  request.set_model("good");
  EXPECT_TRUE(ReadAll(*daemon.stub().GenerateStream(&context, request)).status.ok());
  request.set_model("bad");
  grpc::ClientContext of_failed;
  const grpc::Status refused = ReadAll(*daemon.stub().GenerateStream(&of_failed, request)).status;
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(refused.error_details(), HasSubstr("FAILED"));
}

TEST_F(RepositoryTest, StartsEmptyAndFollowsTheFolders) {
  Daemon daemon({"--model-repository", repository_.path(), "--repository-poll-seconds", "1"});
  daemon.AwaitServing();
  const auto models = Models(daemon);
  const std::filesystem::path folder = Copy("late");
  EXPECT_NE(daemon.AwaitLine("event=model_loaded model=late"), "");
  std::filesystem::remove_all(folder);
  while (State(*models, "late") != "") std::this_thread::sleep_for(std::chrono::milliseconds(20));
  daemon.Signal(SIGTERM);
  EXPECT_EQ(daemon.WaitForEnd(), 0);
}

TEST_F(RepositoryTest, AModelIsReplacedUnderLoadWithoutAFailedRequest) {
  Copy("swapped");
  Daemon daemon({"--model-repository", repository_.path(), "--kv-cache-tokens", "2048"});
  daemon.AwaitServing();
  std::atomic<bool> is_done = false;
  std::atomic<int> num_ok = 0;
  std::atomic<int> num_failed = 0;
  std::vector<std::thread> clients;
  for (int i = 0; i < 4; ++i) {
    clients.emplace_back([&] {
      while (!is_done) {
        grpc::ClientContext context;
        const bool is_ok =
            ReadAll(*daemon.stub().GenerateStream(&context, Request("It was", 5))).status.ok();
        ++(is_ok ? num_ok : num_failed);
      }
    });
  }
  const auto models = Models(daemon);
  for (int i = 0; i < 5; ++i) {
    grpc::ClientContext context;
    v1::LoadModelRequest request;
    request.set_name("swapped");
    v1::Model model;
    EXPECT_TRUE(models->LoadModel(&context, request, &model).ok());
  }
  is_done = true;
  for (std::thread& client : clients) client.join();
  EXPECT_GT(num_ok, 0);
  EXPECT_EQ(num_failed, 0);
}

TEST(DaemonTest, WrongUseIsExitCodeTwo) {
  ExpectFailure({}, 2, "--model", false);
  ExpectFailure({"--no-such-option"}, 2, "--no-such-option", false);
  ExpectFailure({"--model", "no-equals-sign"}, 2, "NAME=DIR", false);
  ExpectFailure({"--model", "two words=/models"}, 2, "no usable name", false);
  ExpectFailure({"--model", kSampleModel, "--model", kSampleModel}, 2, "each name once", false);
  ExpectFailure({"--model", kSampleModel, "--listen", "8001"}, 2, "HOST:PORT", false);
  ExpectFailure({"--model", kSampleModel, "--threads", "-1"}, 2, "--threads", false);
}

TEST(DaemonTest, HelpAndVersionAreFine) {
  EXPECT_EQ(Daemon({"--help"}, false).WaitForEnd(), 0);
  EXPECT_EQ(Daemon({"--version"}, false).WaitForEnd(), 0);
}

TEST(DaemonTest, ReadsAConfigFile) {
  const std::filesystem::path config = std::filesystem::path(::testing::TempDir()) /
                                       ("config-" + std::to_string(getpid()) + ".toml");
  std::ofstream(config) << "model = [\"first=" << SAMPLE_MODEL_DIR
                        << "\", \"second=" << SAMPLE_MODEL_DIR << "\"]\n"
                        << "listen = \"127.0.0.1:0\"\nmetrics-listen = \"127.0.0.1:0\"\n"
                        << "threads = 1\nkv-cache-tokens = 512\n";
  Daemon daemon({"--config", config.string()}, false);
  EXPECT_EQ(Daemon::ValueOf(daemon.AwaitLine("model=first"), "context_tokens"), "512");
  EXPECT_NE(daemon.AwaitLine("model=second"), "");
  daemon.AwaitServing();
  daemon.Signal(SIGTERM);
  EXPECT_EQ(daemon.WaitForEnd(), 0);
  std::filesystem::remove(config);
}

}  // namespace
}  // namespace ultrasketch
