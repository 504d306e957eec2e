// Texts that are too long for gRPC's event threads: how they wait, who goes first, who is dropped.
#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/server/test_server.h"

namespace ultrasketch {
namespace {

using Reader = std::unique_ptr<grpc::ClientReader<v1::GenerateStreamResponse>>;

constexpr size_t kLongBytes = 10'000;
const std::string& LongText() {
  static const auto* const text = new std::string(kLongBytes, 'a');
  return *text;
}

// A call in the background.
template <typename Response>
class Pending {
 public:
  using Start = std::function<grpc::Status(grpc::ClientContext*, Response*)>;
  explicit Pending(Start start)
      : thread_([this, start = std::move(start)] {
          status_ = start(&context_, &response_);
          is_done_ = true;
        }) {}
  ~Pending() {
    if (thread_.joinable()) thread_.join();
  }

  void Cancel() { context_.TryCancel(); }
  bool is_done() const { return is_done_; }
  const grpc::Status& Wait() {
    thread_.join();
    return status_;
  }
  const Response& response() const { return response_; }

 private:
  grpc::ClientContext context_;
  Response response_;
  grpc::Status status_;
  std::atomic<bool> is_done_ = false;
  std::thread thread_;  // last: it uses the rest
};

class LongTextTest : public ::testing::Test {
 protected:
  // Work on long texts begins when `gate_` lets it.
  void StartServer(WorkQueueOptions long_texts = {}) {
    long_texts.after_add = [this] { ++num_added_; };
    long_texts.before_work = [this, hook = gate_.Hook()] {
      ++num_begun_;
      if (gate_applies_) {
        EXPECT_TRUE(hook(0).ok());
      }
    };
    TestModel model;
    model.model.max_position_embeddings = 1 << 20;
    model.model.model.kv_cache_tokens = 1 << 20;
    ServerOptions options;
    options.long_texts = std::move(long_texts);
    server_.emplace(std::vector<TestModel>{model}, options);
  }
  ~LongTextTest() override { gate_.Open(); }

  // Waits until so many texts, in all, have begun to wait, or ended to.
  void AwaitAdded(int count) {
    while (num_added_ < count) std::this_thread::yield();
  }
  void AwaitBegun(int count) {
    while (num_begun_ < count) std::this_thread::yield();
  }

  std::unique_ptr<Pending<v1::TokenizeResponse>> Tokenize(const std::string& text) {
    return std::make_unique<Pending<v1::TokenizeResponse>>(
        [this, text](grpc::ClientContext* context, v1::TokenizeResponse* response) {
          v1::TokenizeRequest request;
          request.set_text(text);
          return server_->generation().Tokenize(context, request, response);
        });
  }
  std::unique_ptr<Pending<v1::DetokenizeResponse>> Detokenize(int num_ids) {
    return std::make_unique<Pending<v1::DetokenizeResponse>>(
        [this, num_ids](grpc::ClientContext* context, v1::DetokenizeResponse* response) {
          v1::DetokenizeRequest request;
          for (int i = 0; i < num_ids; ++i) request.add_token_ids('a');
          return server_->generation().Detokenize(context, request, response);
        });
  }
  std::unique_ptr<Pending<v1::GenerateResponse>> Generate(
      const std::string& text, std::chrono::milliseconds timeout = std::chrono::minutes(5)) {
    return std::make_unique<Pending<v1::GenerateResponse>>(
        [this, text, timeout](grpc::ClientContext* context, v1::GenerateResponse* response) {
          context->set_deadline(std::chrono::system_clock::now() + timeout);
          return server_->generation().Generate(context, Request(text, 3), response);
        });
  }

  double Metric(const std::string& sample) { return server_->Metric(sample).value_or(-1); }

  Gate gate_;
  std::atomic<bool> gate_applies_ = true;
  std::atomic<int> num_added_ = 0;
  std::atomic<int> num_begun_ = 0;
  std::optional<TestServer> server_;
};

TEST_F(LongTextTest, TheWaitBeforeTheEngineIsPartOfTheLatency) {
  StartServer();
  constexpr absl::Duration kWait = absl::Milliseconds(80);
  const auto delayed = [this](const std::function<void()>& call) {
    gate_.Close();
    std::thread thread(call);
    gate_.WaitForStep();
    absl::SleepFor(kWait);
    gate_.Open();
    thread.join();
  };
  const auto queue = [](const v1::Timing& timing) {
    return absl::Seconds(timing.queue().seconds()) + absl::Nanoseconds(timing.queue().nanos());
  };
  delayed([&] {
    const StreamOutput output = GenerateStream(*server_, Request(LongText(), 3));
    ASSERT_TRUE(output.status.ok()) << output.status.error_message();
    EXPECT_GE(queue(output.finals.at(0)->timing()), kWait);
  });
  delayed([&] {
    grpc::ClientContext context;
    v1::GenerateResponse response;
    ASSERT_TRUE(server_->generation().Generate(&context, Request(LongText(), 3), &response).ok());
    EXPECT_GE(queue(response.timing()), kWait);
  });
  const double wait = absl::ToDoubleSeconds(kWait);
  EXPECT_GE(Metric(R"(ultrasketch_time_to_first_token_seconds_sum{model="small"})"), 2 * wait);
  EXPECT_GE(Metric(R"(ultrasketch_queue_duration_seconds_sum{model="small"})"), 2 * wait);
  EXPECT_GE(Metric(R"(ultrasketch_request_duration_seconds_sum{model="small"})"), 2 * wait);
  delayed([&] {
    grpc::ClientContext context;
    v1::ScoreRequest request;
    request.set_text(LongText());
    v1::ScoreResponse response;
    EXPECT_TRUE(server_->generation().Score(&context, request, &response).ok());
  });
  EXPECT_GE(Metric(R"(ultrasketch_queue_duration_seconds_sum{model="small"})"), 3 * wait);
}

TEST_F(LongTextTest, APromptThatWaitsIsDroppedWhenItsClientLeaves) {
  StartServer();
  gate_.Close();
  const auto first = Generate(LongText());
  const auto second = Generate(LongText());
  AwaitBegun(2);
  const auto third = Generate(LongText());
  grpc::ClientContext stream_context;
  const Reader fourth = server_->generation().GenerateStream(&stream_context, Request(LongText()));
  AwaitAdded(4);
  third->Cancel();
  stream_context.TryCancel();
  EXPECT_EQ(third->Wait().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_EQ(ReadAll(*fourth).status.error_code(), grpc::StatusCode::CANCELLED);
  // The server ends them, though its threads are all held.
  while (Metric(R"(ultrasketch_requests_total{code="CANCELLED",model="small"})") < 2) {
    std::this_thread::yield();
  }
  EXPECT_EQ(Metric(R"(ultrasketch_rejected_requests_total{model="small",reason="client_gone"})"),
            2);
  gate_.Open();
  EXPECT_TRUE(first->Wait().ok());
  EXPECT_TRUE(second->Wait().ok());
  EXPECT_EQ(num_begun_, 2);
}

TEST_F(LongTextTest, APromptThatWaitsEndsAtItsDeadline) {
  StartServer();
  gate_.Close();
  const auto first = Generate(LongText());
  const auto second = Generate(LongText());
  AwaitBegun(2);
  // Until one has come so far before its time was over.
  for (std::chrono::milliseconds timeout(200); num_added_ < 3; timeout *= 4) {
    EXPECT_EQ(Generate(LongText(), timeout)->Wait().error_code(),
              grpc::StatusCode::DEADLINE_EXCEEDED);
  }
  // Whether the client's cancellation or the server's own clock comes first is open.
  while (Metric(R"(ultrasketch_requests_total{code="DEADLINE_EXCEEDED",model="small"})") +
             Metric(R"(ultrasketch_requests_total{code="CANCELLED",model="small"})") <
         1) {
    std::this_thread::yield();
  }
  gate_.Open();
  EXPECT_TRUE(first->Wait().ok());
  EXPECT_TRUE(second->Wait().ok());
  EXPECT_EQ(num_begun_, 2);
}

TEST_F(LongTextTest, ATextThatIsTokenizedIsDroppedWhenItsClientLeaves) {
  StartServer();
  gate_.Close();
  const auto held = Tokenize(LongText());
  AwaitBegun(1);
  held->Cancel();
  EXPECT_EQ(held->Wait().error_code(), grpc::StatusCode::CANCELLED);
  gate_.Open();
  // Its thread is free again.
  EXPECT_TRUE(Tokenize(LongText())->Wait().ok());
}

TEST_F(LongTextTest, TextsMakeRoomWhenTheirClientsLeave) {
  StartServer({.max_waiting = 1});
  gate_.Close();
  const auto running = Tokenize(LongText());
  AwaitBegun(1);
  const auto waiting = Tokenize(LongText());
  AwaitAdded(2);
  EXPECT_EQ(DetailsOf(Detokenize(5000)->Wait()).reason, "QUEUE_FULL");
  waiting->Cancel();
  EXPECT_EQ(waiting->Wait().error_code(), grpc::StatusCode::CANCELLED);
  // Its place is free as soon as the server hears of it.
  std::unique_ptr<Pending<v1::TokenizeResponse>> next;
  while (num_added_ < 3) {
    next = Tokenize(LongText());
    while (num_added_ < 3 && !next->is_done()) std::this_thread::yield();
  }
  gate_.Open();
  EXPECT_TRUE(running->Wait().ok());
  EXPECT_TRUE(next->Wait().ok());
  EXPECT_EQ(num_begun_, 2);
}

TEST_F(LongTextTest, TokenizationNeverStandsBeforeAGeneration) {
  StartServer();
  gate_.Close();
  const auto running = Tokenize(LongText());
  AwaitBegun(1);
  gate_applies_ = false;  // any further work goes through
  const auto tokenizing = Tokenize(LongText());
  const auto detokenizing = Detokenize(5000);
  AwaitAdded(3);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(Generate(LongText())->Wait().ok());
  EXPECT_EQ(num_begun_, 4);
  EXPECT_FALSE(running->is_done());
  EXPECT_FALSE(tokenizing->is_done());
  EXPECT_FALSE(detokenizing->is_done());
  gate_.Open();
  EXPECT_TRUE(running->Wait().ok());
  EXPECT_EQ(running->response().token_ids_size(), static_cast<int>(kLongBytes));
  EXPECT_TRUE(tokenizing->Wait().ok());
  EXPECT_TRUE(detokenizing->Wait().ok());
  EXPECT_EQ(detokenizing->response().text(), std::string(5000, 'a'));
}

TEST_F(LongTextTest, BytesThatWaitAreBounded) {
  StartServer({.max_waiting_bytes = 2 * kLongBytes});
  gate_.Close();
  const auto running = Tokenize(LongText());
  AwaitBegun(1);
  const auto first = Tokenize(LongText());
  const auto second = Tokenize(LongText());
  AwaitAdded(3);
  grpc::ClientContext context;
  v1::TokenizeRequest request;
  request.set_text(LongText());
  v1::TokenizeResponse response;
  const grpc::Status refused = server_->generation().Tokenize(&context, request, &response);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(DetailsOf(refused).reason, "QUEUED_BYTES_FULL");
  EXPECT_TRUE(DetailsOf(refused).retry_delay.has_value());
  EXPECT_EQ(context.GetServerTrailingMetadata().count("grpc-retry-pushback-ms"), 1u);

  // Prompts have their own room.
  gate_applies_ = false;
  EXPECT_TRUE(Generate(LongText())->Wait().ok());
  gate_.Open();
  EXPECT_TRUE(running->Wait().ok());
  EXPECT_TRUE(first->Wait().ok());
  EXPECT_TRUE(second->Wait().ok());
}

TEST_F(LongTextTest, PromptsRefusedForTheirBytesAreCounted) {
  StartServer({.max_waiting_bytes = kLongBytes});
  gate_.Close();
  // One after the other: two would not find room to wait.
  const auto first = Generate(LongText());
  AwaitBegun(1);
  const auto second = Generate(LongText());
  AwaitBegun(2);
  const auto waiting = Generate(LongText());
  AwaitAdded(3);
  const grpc::Status refused = Generate(LongText())->Wait();
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(DetailsOf(refused).reason, "QUEUED_BYTES_FULL");
  EXPECT_EQ(
      Metric(R"(ultrasketch_rejected_requests_total{model="small",reason="queued_bytes_full"})"),
      1);
  gate_.Open();
  for (const auto& call : {&first, &second, &waiting}) EXPECT_TRUE((*call)->Wait().ok());
}

}  // namespace
}  // namespace ultrasketch
