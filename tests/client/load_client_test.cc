// The load generator against a server in this process.
#include "client/load/load_client.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <set>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "gmock/gmock.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "gtest/gtest.h"
#include <grpcpp/grpcpp.h>

#include "client/load/http_get.h"
#include "engine/bench/load/load_summary.h"
#include "tests/server/test_server.h"

namespace ultrasketch {
namespace {

using client::LoadClient;
using client::LoadRunOptions;
using ::testing::HasSubstr;

Workload SmallWorkload(int64_t shared_prefix_tokens = 0) {
  WorkloadOptions options;
  options.prompt_tokens = *LengthDistribution::Parse("2:9");
  options.output_tokens = *LengthDistribution::Parse("2:7");
  options.shared_prefix_tokens = shared_prefix_tokens;
  return {options, {256, {}}, 0};
}

std::unique_ptr<LoadClient> Connect(const TestServer& server, int num_channels = 1,
                                    int num_threads = 1) {
  client::LoadClientOptions options;
  options.target = server.address();
  options.num_channels = num_channels;
  options.num_threads = num_threads;
  auto load = LoadClient::Connect(options);
  EXPECT_TRUE(load.ok()) << load.status();
  return *std::move(load);
}

// Tokens that requests [first, last) of a workload ask for.
int64_t WantedTokens(const Workload& workload, int64_t first, int64_t last) {
  int64_t tokens = 0;
  for (int64_t index = first; index < last; ++index) {
    tokens += workload.Request(index).output_tokens;
  }
  return tokens;
}

TEST(LoadClientTest, AClosedLoopMeasuresEveryRequest) {
  TestServer server;
  const auto load = Connect(server, /*num_channels=*/2, /*num_threads=*/2);
  const Workload workload = SmallWorkload();
  SchedulePlan plan;
  plan.concurrency = 5;
  plan.warm_up_requests = 5;
  plan.measured_requests = 40;
  int64_t num_ended = 0;
  LoadRunOptions options;
  options.progress = [&](int64_t ended, double) { num_ended = ended; };
  const auto run = load->Run(workload, plan, options);
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_EQ(num_ended, 45);
  const LoadSummary summary = SummarizeRun(*run, {});
  EXPECT_EQ(summary.num_warm_up, 5);
  EXPECT_EQ(summary.num_requests, 40);
  EXPECT_EQ(summary.num_ok, 40);
  EXPECT_EQ(summary.num_short, 0);
  EXPECT_EQ(summary.output_tokens, WantedTokens(workload, 5, 45));
  EXPECT_EQ(server.Metric("ultrasketch_generated_tokens_total{model=\"small\"}"),
            static_cast<double>(WantedTokens(workload, 0, 45)));
  EXPECT_EQ(summary.time_to_first_token.count, 40);
  EXPECT_EQ(summary.inter_token.count, summary.output_tokens - 40);
  EXPECT_GT(summary.time_to_first_token.p50, 0);
  EXPECT_GE(summary.end_to_end.p50, summary.time_to_first_token.p50);
  EXPECT_GT(summary.client.cpu_seconds, 0);
  EXPECT_GT(summary.client.busiest_thread_share, 0);
  server.WaitUntilIdle();
}

TEST(LoadClientTest, AnOpenLoopSendsWhileTheServerStandsStill) {
  Gate gate;
  gate.Close();
  TestModel model;
  model.model.before_forward = gate.Hook();
  TestServer server({model});
  const auto load = Connect(server);
  SchedulePlan plan;
  plan.loop = LoadLoop::kOpen;
  plan.rate = 500;
  plan.arrivals = ArrivalProcess::kConstant;
  plan.measured_requests = 20;
  LoadRunOptions options;
  options.progress = [&](int64_t, double) { gate.Open(); };  // when all have been sent
  const auto run = load->Run(SmallWorkload(), plan, options);
  ASSERT_TRUE(run.ok()) << run.status();
  ASSERT_EQ(run->requests.size(), 20u);
  double last_sent = 0;
  for (const LoadRecord& request : run->requests) {
    last_sent = std::max(last_sent, request.sent_seconds);
  }
  for (const LoadRecord& request : run->requests) {
    EXPECT_EQ(request.code, absl::StatusCode::kOk) << request.message;
    EXPECT_GE(request.sent_seconds, request.intended_seconds);
    ASSERT_FALSE(request.messages.empty());
    EXPECT_GE(request.intended_seconds + request.messages.front().gap_seconds, last_sent);
  }
}

TEST(LoadClientTest, RefusedRequestsAreErrorsWithTheirReason) {
  Gate gate;
  gate.Close();
  TestModel model;
  model.model.before_forward = gate.Hook();
  model.engine_loop.max_queued_requests = 1;
  model.engine_loop.max_running_sequences = 1;
  TestServer server({model});
  const auto load = Connect(server);
  SchedulePlan plan;
  plan.concurrency = 8;
  plan.measured_requests = 30;
  LoadRunOptions options;
  options.progress = [&](int64_t ended, double) {
    if (ended >= 20) gate.Open();
  };
  const auto run = load->Run(SmallWorkload(), plan, options);
  ASSERT_TRUE(run.ok()) << run.status();
  const LoadSummary summary = SummarizeRun(*run, {});
  EXPECT_EQ(summary.num_requests, 30);
  ASSERT_EQ(summary.errors.size(), 1u);
  EXPECT_EQ(summary.errors[0].code, absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(summary.errors[0].reason, "QUEUE_FULL");
  EXPECT_GE(summary.errors[0].count, 20);
  EXPECT_EQ(summary.rejection.count, summary.errors[0].count);
  EXPECT_EQ(summary.num_retries, 0);
}

TEST(LoadClientTest, AClosedLoopWaitsForAServerThatIsGone) {
  TestServer server;
  const auto load = Connect(server);
  SchedulePlan plan;
  plan.concurrency = 4;
  plan.duration_seconds = 0.5;
  LoadRunOptions options;
  bool is_gone = false;
  options.progress = [&](int64_t, double) {
    if (!is_gone) server.Stop();
    is_gone = true;
  };
  const auto run = load->Run(SmallWorkload(), plan, options);
  ASSERT_TRUE(run.ok()) << run.status();
  int64_t num_unavailable = 0;
  for (const LoadRecord& request : run->requests) {
    num_unavailable += request.code == absl::StatusCode::kUnavailable ? 1 : 0;
  }
  EXPECT_GT(num_unavailable, 0);
  // Each of the four every tenth of a second, and those that were in flight.
  EXPECT_LE(num_unavailable, 4 * 7);
}

// Refuses every request's first attempt, and answers further ones.
class RefusingService : public v1::GenerationService::Service {
 public:
  enum class Delay { kPushback, kRetryInfo, kNever, kNone };

  explicit RefusingService(Delay delay) : delay_(delay) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~RefusingService() override { server_->Shutdown(std::chrono::system_clock::now()); }

  int port() const { return port_; }

  grpc::Status GenerateStream(grpc::ServerContext* context, const v1::GenerateRequest* request,
                              grpc::ServerWriter<v1::GenerateStreamResponse>* writer) override {
    {
      absl::MutexLock lock(&mutex_);
      if (!refused_.insert(request->seed()).second) {
        v1::GenerateStreamResponse response;
        for (int i = 0; i < request->max_tokens(); ++i) {
          response.mutable_delta()->add_token_ids(1);
        }
        writer->Write(response);
        return grpc::Status::OK;
      }
    }
    google::rpc::Status details;
    if (delay_ == Delay::kPushback) context->AddTrailingMetadata("grpc-retry-pushback-ms", "150");
    if (delay_ == Delay::kNever) context->AddTrailingMetadata("grpc-retry-pushback-ms", "-1");
    if (delay_ == Delay::kRetryInfo || delay_ == Delay::kNever) {
      google::rpc::RetryInfo retry;
      retry.mutable_retry_delay()->set_nanos(150'000'000);
      details.add_details()->PackFrom(retry);
    }
    return {grpc::StatusCode::RESOURCE_EXHAUSTED, "full", details.SerializeAsString()};
  }

 private:
  const Delay delay_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
  absl::Mutex mutex_;
  std::set<uint64_t> refused_ ABSL_GUARDED_BY(mutex_);
};

TEST(LoadClientTest, RetriesComeAfterTheDelayThatTheServerAsksFor) {
  using Delay = RefusingService::Delay;
  for (const Delay delay : {Delay::kPushback, Delay::kRetryInfo, Delay::kNever, Delay::kNone}) {
    SCOPED_TRACE(static_cast<int>(delay));
    RefusingService service(delay);
    client::LoadClientOptions connection;
    connection.target = absl::StrCat("127.0.0.1:", service.port());
    const auto load = LoadClient::Connect(connection);
    ASSERT_TRUE(load.ok()) << load.status();
    SchedulePlan plan;
    plan.concurrency = 3;
    plan.measured_requests = 6;
    LoadRunOptions options;
    options.retry = true;
    const auto run = (*load)->Run(SmallWorkload(), plan, options);
    ASSERT_TRUE(run.ok()) << run.status();
    const LoadSummary summary = SummarizeRun(*run, {});
    const bool is_final = delay == Delay::kNever || delay == Delay::kNone;
    EXPECT_EQ(summary.num_ok, is_final ? 0 : 6);
    EXPECT_EQ(summary.num_retries, is_final ? 0 : 6);
    EXPECT_EQ(summary.rejection.count, 6);
    EXPECT_EQ(summary.num_short, 0);
    if (is_final) continue;
    for (const LoadRecord& request : run->requests) {
      EXPECT_GE(request.end_seconds - request.sent_seconds, 0.15);
    }
  }
}

TEST(LoadClientTest, DeadlinesEndRequests) {
  Gate gate;
  gate.Close();
  TestModel model;
  model.model.before_forward = gate.Hook();
  TestServer server({model});
  const auto load = Connect(server);
  SchedulePlan plan;
  plan.concurrency = 2;
  plan.measured_requests = 4;
  LoadRunOptions options;
  options.deadline = absl::Milliseconds(30);
  const auto run = load->Run(SmallWorkload(), plan, options);
  gate.Open();
  ASSERT_TRUE(run.ok()) << run.status();
  for (const LoadRecord& request : run->requests) {
    EXPECT_EQ(request.code, absl::StatusCode::kDeadlineExceeded);
  }
}

TEST(LoadClientTest, StoppingCancelsWhatIsInFlight) {
  Gate gate;
  gate.Close();
  TestModel model;
  model.model.before_forward = gate.Hook();
  TestServer server({model});
  const auto load = Connect(server);
  SchedulePlan plan;
  plan.concurrency = 3;
  std::stop_source stop;
  LoadRunOptions options;
  options.stop = stop.get_token();
  std::thread stopper([&] {
    gate.WaitForStep();
    stop.request_stop();
  });
  EXPECT_TRUE(absl::IsCancelled(load->Run(SmallWorkload(), plan, options).status()));
  stopper.join();
  gate.Open();
  server.WaitUntilIdle();
}

TEST(HttpGetTest, UrlsAreReadOrRefused) {
  const auto url = client::ParseHttpUrl("http://localhost:8002/a/b?c");
  ASSERT_TRUE(url.ok()) << url.status();
  EXPECT_EQ(url->host, "localhost");
  EXPECT_EQ(url->port, "8002");
  EXPECT_EQ(url->path, "/a/b?c");
  const auto ipv6 = client::ParseHttpUrl("http://[::1]");
  ASSERT_TRUE(ipv6.ok()) << ipv6.status();
  EXPECT_EQ(ipv6->host, "::1");
  EXPECT_EQ(ipv6->port, "80");
  EXPECT_EQ(ipv6->path, "/metrics");
  for (const char* wrong : {"", "localhost:8002", "https://localhost/", "http://", "http://:80/",
                            "http://a:0/", "http://a:65536/", "http://a:b/", "http://[::1/",
                            "http://[::1]x/", "http://a/\r\nx", "http://a@b/"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(client::ParseHttpUrl(wrong).status())) << wrong;
  }
}

TEST(HttpGetTest, ReadsTheServersMetricsAndNothingElse) {
  Metrics metrics;
  const auto model_metrics = metrics.ForModel("small");
  const auto endpoint = MetricsEndpoint::Start({"127.0.0.1", 0}, {metrics.collectable()});
  ASSERT_TRUE(endpoint.ok()) << endpoint.status();
  client::HttpUrl url = {"127.0.0.1", absl::StrCat((*endpoint)->address().port), "/metrics"};
  const auto page = client::HttpGet(url, absl::Seconds(30));
  ASSERT_TRUE(page.ok()) << page.status();
  EXPECT_EQ(page->front(), '#');
  EXPECT_THAT(*page, HasSubstr("\nultrasketch_generated_tokens_total{model=\"small\"} 0"));
  url.path = "/other";
  EXPECT_TRUE(absl::IsUnavailable(client::HttpGet(url, absl::Seconds(30)).status()));
  url.port = "1";
  EXPECT_TRUE(absl::IsUnavailable(client::HttpGet(url, absl::Seconds(5)).status()));
}

TEST(LoadClientTest, AnUnreachableServerIsUnavailable) {
  client::LoadClientOptions options;
  options.target = "unix:/nonexistent/ultrasketch.socket";
  options.connect_timeout = absl::Milliseconds(200);
  const auto load = LoadClient::Connect(options);
  EXPECT_TRUE(absl::IsUnavailable(load.status())) << load.status();
  options.target = "";
  EXPECT_TRUE(absl::IsInvalidArgument(LoadClient::Connect(options).status()));
}

}  // namespace
}  // namespace ultrasketch
