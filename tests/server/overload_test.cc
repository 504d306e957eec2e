// Many clients at once that cancel, vanish, do not read, or ask for more than there is: afterwards
// everything stands where it stood.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "server/process_stats.h"
#include "tests/server/raw_grpc.h"
#include "tests/server/test_server.h"

namespace ultrasketch {
namespace {

// Requests of a test: more for a long run, ULTRASKETCH_TEST_REQUESTS=10000.
int NumRequests(int by_default) {
  const char* text = std::getenv("ULTRASKETCH_TEST_REQUESTS");
  int num_requests = 0;
  return text != nullptr && absl::SimpleAtoi(text, &num_requests) ? num_requests : by_default;
}

TestModel LongModel() {
  TestModel model;
  model.model.max_position_embeddings = 1 << 16;
  model.model.model.kv_cache_tokens = 1 << 18;
  model.model.logits = [](absl::Span<const int32_t> tokens) {
    std::vector<float> logits(300, 0.0f);
    logits['a' + tokens.size() % 26] = 20;
    return logits;
  };
  return model;
}

// One stream of many that a thread drives.
struct Stream {
  grpc::ClientContext context;
  v1::GenerateStreamResponse message;
  std::unique_ptr<grpc::ClientAsyncReader<v1::GenerateStreamResponse>> reader;
  grpc::Status status;
  int reads_left = 0;  // then the client cancels; -1: it never does
  bool is_finishing = false;
};

// Runs `num_streams` streams on one thread, `max_open` at a time, each of which begins by `begin`
// and is passed to `end` when it is over.
template <typename Begin, typename End>
void RunStreams(TestServer& server, int num_streams, int max_open, Begin begin, End end) {
  const auto stub = v1::GenerationService::NewStub(server.NewChannel());
  grpc::CompletionQueue queue;
  int num_begun = 0;
  int num_open = 0;
  const auto start = [&] {
    auto stream = std::make_unique<Stream>();
    const v1::GenerateRequest request = begin(*stream, num_begun++);
    stream->reader = stub->AsyncGenerateStream(&stream->context, request, &queue, stream.get());
    stream.release();
    ++num_open;
  };
  while (num_begun < num_streams && num_open < max_open) start();
  void* tag = nullptr;
  bool ok = false;
  while (num_open > 0 && queue.Next(&tag, &ok)) {
    auto* stream = static_cast<Stream*>(tag);
    if (stream->is_finishing) {
      end(*stream);
      delete stream;
      --num_open;
      if (num_begun < num_streams) start();
    } else if (!ok) {
      stream->is_finishing = true;
      stream->reader->Finish(&stream->status, stream);
    } else {
      if (stream->reads_left-- == 0) stream->context.TryCancel();
      stream->reader->Read(&stream->message, stream);
    }
  }
  queue.Shutdown();
}

void ExpectNothingIsLeft(TestServer& server) {
  server.WaitUntilIdle();
  const std::string open =
      R"(ultrasketch_open_calls{method="ultrasketch.v1.GenerationService/GenerateStream"})";
  while (server.Metric(open) != 0) std::this_thread::yield();
  EXPECT_EQ(server.Metric("ultrasketch_unread_bytes"), 0);
  EXPECT_EQ(server.Metric(R"(ultrasketch_tokens_waiting{model="small"})"), 0);
  EXPECT_EQ(server.engine_loop().stats().kv_blocks_used, 0);
  EXPECT_TRUE(GenerateStream(server, Request("after")).status.ok());
}

double Calls(TestServer& server, const std::string& code) {
  return server
      .Metric(absl::StrCat("ultrasketch_calls_total{code=\"", code,
                           "\",method=\"ultrasketch.v1.GenerationService/GenerateStream\"}"))
      .value_or(-1);
}

TEST(OverloadTest, AStormOfCancelledRequestsLeavesNothing) {
  const int num_requests = NumRequests(400);
  TestModel model = LongModel();
  model.engine_loop.max_running_sequences = 16;
  TestServer server({model});
  std::mt19937 random(1);
  std::atomic<int> num_cancelled = 0;
  RunStreams(
      server, num_requests, 100,
      [&](Stream& stream, int) {
        // Before the first message, in the middle, at the end, and never.
        stream.reads_left = static_cast<int>(random() % 8) - 1;
        v1::GenerateRequest request =
            Request(std::string(1 + random() % 200, 'x'), 1 + static_cast<int>(random() % 100));
        if (random() % 8 == 0) request.set_n(3);
        if (random() % 4 == 0) request.set_priority(static_cast<int>(random() % 5) - 2);
        return request;
      },
      [&](const Stream& stream) {
        if (stream.status.ok()) return;
        EXPECT_EQ(stream.status.error_code(), grpc::StatusCode::CANCELLED)
            << stream.status.error_message();
        ++num_cancelled;
      });
  EXPECT_GT(num_cancelled, 0);
  EXPECT_LT(num_cancelled, num_requests);
  ExpectNothingIsLeft(server);
  // Those that were cancelled at once may never have reached the server.
  EXPECT_GE(Calls(server, "OK"), num_requests - num_cancelled + 1);
  EXPECT_LE(Calls(server, "OK") + Calls(server, "CANCELLED"), num_requests + 1);
}

TEST(OverloadTest, TenTimesWhatTheServerTakesIsRefusedWithADelayAndTheRestIsServed) {
  const int num_requests = NumRequests(600);
  TestModel model = LongModel();
  model.engine_loop.max_running_sequences = 4;
  model.engine_loop.max_queued_requests = 8;
  TestServer server({model});
  // gRPC and the allocator grow at first use.
  GenerateStream(server, Request("first"));
  const int64_t num_threads = ReadProcessStats().num_threads;
  std::atomic<int> num_served = 0;
  std::atomic<int> num_refused = 0;
  RunStreams(
      server, num_requests, 120,
      [](Stream& stream, int) {
        stream.reads_left = -1;
        return Request("overload", 30);
      },
      [&](const Stream& stream) {
        if (stream.status.ok()) {
          ++num_served;
          return;
        }
        EXPECT_EQ(stream.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
        const ErrorDetails details = DetailsOf(stream.status);
        EXPECT_EQ(details.reason, "QUEUE_FULL");
        EXPECT_TRUE(details.retry_delay.has_value());
        ++num_refused;
      });
  EXPECT_EQ(num_served + num_refused, num_requests);
  EXPECT_GE(num_served, 12);
  EXPECT_GT(num_refused, 0);
  ExpectNothingIsLeft(server);
  EXPECT_EQ(Calls(server, "RESOURCE_EXHAUSTED"), num_refused);
  // gRPC's own come and go; one for each call would be hundreds.
  EXPECT_LT(ReadProcessStats().num_threads, num_threads + 50);
}

TEST(OverloadTest, RefusalsOfAStormAreHeldBackAndClientsMayLeaveMeanwhile) {
  const int num_requests = NumRequests(300);
  Gate gate;
  gate.Close();
  TestModel model;
  model.engine_loop.max_running_sequences = 1;
  model.engine_loop.max_queued_requests = 1;
  model.model.before_forward = gate.Hook();
  ServerOptions options;
  options.call_limits.refusals = {.per_second = 0, .max_pause = absl::Milliseconds(30)};
  TestServer server({model}, options);
  grpc::ClientContext running_context;
  grpc::ClientContext waiting_context;
  const auto running = server.generation().GenerateStream(&running_context, Request("running", 2));
  gate.WaitForStep();
  const auto waiting = server.generation().GenerateStream(&waiting_context, Request("waiting", 2));
  while (server.engine_loop().stats().num_waiting != 1) std::this_thread::yield();
  int num_refused = 0;
  int num_cancelled = 0;
  const absl::Time begin = absl::Now();
  RunStreams(
      server, num_requests, 30,
      [](Stream& stream, int index) {
        stream.reads_left = index % 3 == 0 ? 0 : -1;  // some cancel as soon as they were sent
        return Request("refused");
      },
      [&](const Stream& stream) {
        if (stream.status.error_code() == grpc::StatusCode::CANCELLED) {
          ++num_cancelled;
          return;
        }
        EXPECT_EQ(stream.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
        EXPECT_EQ(DetailsOf(stream.status).reason, "QUEUE_FULL");
        ++num_refused;
      });
  // Thirty at a time, each of which has waited.
  EXPECT_GE(absl::Now() - begin, (num_refused / 30) * absl::Milliseconds(30));
  EXPECT_GE(num_refused, num_requests / 2);
  EXPECT_EQ(num_refused + num_cancelled, num_requests);
  gate.Open();
  EXPECT_TRUE(ReadAll(*running).status.ok());
  EXPECT_TRUE(ReadAll(*waiting).status.ok());
  ExpectNothingIsLeft(server);
}

TEST(OverloadTest, ClientsThatNeverReadAreGivenUpAndOthersAreServed) {
  const int num_clients = NumRequests(20);
  ServerOptions options;
  options.call_limits.max_unread_bytes = 64 << 10;
  options.call_limits.max_unread_time = absl::Milliseconds(300);
  TestServer server({LongModel()}, options);
  struct Client {
    std::unique_ptr<v1::GenerationService::Stub> stub;
    grpc::ClientContext context;
    std::unique_ptr<grpc::ClientReader<v1::GenerateStreamResponse>> reader;
  };
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);  // the window does not grow
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  v1::GenerateRequest request = Request("never read", 60'000);
  request.set_logprobs(5);
  std::vector<Client> clients(static_cast<size_t>(num_clients));
  for (Client& client : clients) {
    client.stub = v1::GenerationService::NewStub(
        grpc::CreateCustomChannel(server.address(), grpc::InsecureChannelCredentials(), arguments));
    client.reader = client.stub->GenerateStream(&client.context, request);
  }
  EXPECT_TRUE(GenerateStream(server, Request("quick", 20)).status.ok());
  server.WaitUntilIdle();
  EXPECT_LT(server.Metric("ultrasketch_unread_bytes").value_or(1e9),
            num_clients * (2.0 * (1 << 20)));
  // None reads: in the end the server lets go of all of them.
  ExpectNothingIsLeft(server);
  EXPECT_EQ(Calls(server, "RESOURCE_EXHAUSTED"), num_clients);
}

TEST(OverloadTest, CallsThatExhaustTheTransportsMemoryEndAndOthersAreServed) {
  constexpr int kNumClients = 12;
  ServerOptions options;
  options.max_transport_bytes = 2 << 20;
  TestServer server({LongModel()}, options);
  std::vector<grpc::Status> statuses(kNumClients);
  std::vector<std::thread> threads;
  for (grpc::Status& status : statuses) {
    threads.emplace_back([&] {
      const auto stub = v1::GenerationService::NewStub(server.NewChannel());
      grpc::ClientContext context;
      v1::TokenizeRequest request;
      request.set_text(std::string(8 << 20, 'x'));  // alone more than there is
      v1::TokenizeResponse response;
      status = stub->Tokenize(&context, request, &response);
    });
  }
  for (std::thread& thread : threads) thread.join();
  int num_ended_by_transport = 0;
  for (const grpc::Status& status : statuses) {
    // The last is the server's own answer: gRPC ends as few as it must.
    EXPECT_THAT(status.error_code(),
                ::testing::AnyOf(grpc::StatusCode::RESOURCE_EXHAUSTED,
                                 grpc::StatusCode::UNAVAILABLE, grpc::StatusCode::OUT_OF_RANGE))
        << status.error_message();
    num_ended_by_transport += status.error_code() != grpc::StatusCode::OUT_OF_RANGE ? 1 : 0;
  }
  EXPECT_GT(num_ended_by_transport, 0);
  // gRPC may have closed the idle connection as well: the next call may find it gone, and connects
  // again.
  const absl::Time deadline = absl::Now() + absl::Minutes(1);
  while (!GenerateStream(server, Request("after", 5)).status.ok()) {
    ASSERT_LT(absl::Now(), deadline);
    absl::SleepFor(absl::Milliseconds(20));
  }
  ExpectNothingIsLeft(server);
}

TEST(OverloadTest, ClientsThatVanishInAnyPhaseLeaveNothing) {
  const int num_clients = NumRequests(60);
  TestModel model = LongModel();
  model.engine_loop.max_running_sequences = 8;
  std::atomic<int> num_accepted = 0;
  ServerOptions options;
  // Delays where a client's end and the server's next step race.
  options.call_limits.after_accept = [&num_accepted] {
    if (++num_accepted % 3 == 0) absl::SleepFor(absl::Milliseconds(1));
  };
  std::atomic<int> num_written = 0;
  options.call_limits.before_write = [&num_written] {
    if (++num_written % 97 == 0) absl::SleepFor(absl::Milliseconds(1));
  };
  TestServer server({model}, options);
  std::mt19937 random(7);
  for (int i = 0; i < num_clients; i += 6) {
    BreakableProxy proxy(server.server().address().port);
    const auto stub = v1::GenerationService::NewStub(grpc::CreateChannel(
        absl::StrCat("ipv4:127.0.0.1:", proxy.port()), grpc::InsecureChannelCredentials()));
    std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
    std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateStreamResponse>>> readers;
    for (int j = 0; j < 6; ++j) {
      contexts.push_back(std::make_unique<grpc::ClientContext>());
      readers.push_back(stub->GenerateStream(contexts.back().get(), Request("vanishes", 50'000)));
    }
    v1::GenerateStreamResponse message;
    for (uint32_t reads = random() % 4; reads > 0; --reads) readers.front()->Read(&message);
    proxy.Break();
    for (const auto& reader : readers) {
      while (reader->Read(&message)) {
      }
      EXPECT_FALSE(reader->Finish().ok());
    }
  }
  ExpectNothingIsLeft(server);
}

}  // namespace
}  // namespace ultrasketch
