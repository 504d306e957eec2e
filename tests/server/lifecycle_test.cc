// Clients that cancel, vanish, wait too long or do not read; the end of the server.
#include <atomic>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/server/raw_grpc.h"
#include "tests/server/test_server.h"

namespace ultrasketch {
namespace {

using Reader = std::unique_ptr<grpc::ClientReader<v1::GenerateStreamResponse>>;

// Very long completions, so that nothing ends by itself before the test wants it to.
TestModel EndlessModel() {
  TestModel model;
  model.model.max_position_embeddings = 1 << 20;
  model.model.model.kv_cache_tokens = 1 << 20;
  model.model.logits = [](absl::Span<const int32_t> tokens) {
    std::vector<float> logits(300, 0.0f);
    logits['a' + tokens.size() % 26] = 20;
    return logits;
  };
  return model;
}

constexpr int kEndless = 1'000'000;

TEST(LifecycleTest, CancellingAStreamReturnsItsBlocks) {
  TestServer server({EndlessModel()});
  grpc::ClientContext context;
  const Reader reader = server.generation().GenerateStream(&context, Request("go", kEndless));
  v1::GenerateStreamResponse message;
  ASSERT_TRUE(reader->Read(&message));
  EXPECT_GT(server.engine_loop().stats().kv_blocks_used, 0);
  context.TryCancel();
  server.WaitUntilIdle();
  while (reader->Read(&message)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  while (server.Metric(R"(ultrasketch_requests_total{code="CANCELLED",model="small"})") != 1) {
    std::this_thread::yield();
  }
}

TEST(LifecycleTest, CancellingAUnaryCallReturnsItsBlocks) {
  Gate gate;
  TestModel model = EndlessModel();
  model.model.before_forward = gate.Hook();
  gate.LetThrough(3);
  TestServer server({model});
  grpc::ClientContext context;
  std::thread thread([&] {
    v1::GenerateResponse response;
    EXPECT_EQ(
        server.generation().Generate(&context, Request("go", kEndless), &response).error_code(),
        grpc::StatusCode::CANCELLED);
  });
  gate.WaitForStep();
  context.TryCancel();
  thread.join();
  gate.Open();
  server.WaitUntilIdle();
}

TEST(LifecycleTest, TheDeadlineEndsARequestThatRuns) {
  TestServer server({EndlessModel()});
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(100));
  const Reader reader = server.generation().GenerateStream(&context, Request("go", kEndless));
  EXPECT_EQ(ReadAll(*reader).status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  server.WaitUntilIdle();
}

TEST(LifecycleTest, TheDeadlineEndsARequestThatWaits) {
  Gate gate;
  TestModel model = EndlessModel();
  model.model.before_forward = gate.Hook();
  model.engine_loop.max_running_sequences = 1;
  TestServer server({model});
  grpc::ClientContext running_context;
  const Reader running =
      server.generation().GenerateStream(&running_context, Request("running", kEndless));
  v1::GenerateStreamResponse message;
  ASSERT_TRUE(running->Read(&message));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(100));
  const StreamOutput output =
      ReadAll(*server.generation().GenerateStream(&context, Request("waiting")));
  EXPECT_EQ(output.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_EQ(output.num_deltas, 0);
  while (server.engine_loop().stats().num_waiting > 0) std::this_thread::yield();
  EXPECT_EQ(server.engine_loop().stats().num_running, 1);
  running_context.TryCancel();
}

TEST(LifecycleTest, AClientThatDoesNotReadHoldsUpNobody) {
  TestModel model = EndlessModel();
  TestServer server({model});
  constexpr int kManyTokens = 30'000;
  v1::GenerateRequest request = Request("slow", kManyTokens);
  request.set_logprobs(3);  // more than fits into the connection's window
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);  // and the window does not grow
  const auto stub = v1::GenerationService::NewStub(
      grpc::CreateCustomChannel(server.address(), grpc::InsecureChannelCredentials(), arguments));
  grpc::ClientContext slow_context;
  const Reader slow = stub->GenerateStream(&slow_context, request);
  // The engine finishes while nobody reads.
  v1::GenerateStreamResponse first;
  ASSERT_TRUE(slow->Read(&first));
  server.WaitUntilIdle();
  const StreamOutput other = GenerateStream(server, Request("quick", 20));
  EXPECT_TRUE(other.status.ok());
  EXPECT_EQ(other.token_ids.at(0).size(), 20u);

  const StreamOutput late = ReadAll(*slow);
  EXPECT_TRUE(late.status.ok()) << late.status.error_message();
  EXPECT_EQ(late.token_ids.at(0).size() + static_cast<size_t>(first.delta().token_ids_size()),
            static_cast<size_t>(kManyTokens));
  EXPECT_LT(late.num_deltas, kManyTokens / 2) << "what waits is merged";
  EXPECT_TRUE(late.finals.at(0).has_value());
}

// A stream of many bytes whose client has read one message and then stops.
struct SlowStream {
  SlowStream(TestServer& server, int num_tokens) {
    v1::GenerateRequest request = Request("slow", num_tokens);
    request.set_logprobs(3);
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);  // the window does not grow
    stub = v1::GenerationService::NewStub(
        grpc::CreateCustomChannel(server.address(), grpc::InsecureChannelCredentials(), arguments));
    reader = stub->GenerateStream(&context, request);
    v1::GenerateStreamResponse first;
    EXPECT_TRUE(reader->Read(&first));
  }

  std::unique_ptr<v1::GenerationService::Stub> stub;
  grpc::ClientContext context;
  Reader reader;
};

TEST(LifecycleTest, AStreamThatLeavesTooMuchUnreadEndsAndSaysSo) {
  ServerOptions options;
  options.call_limits.max_unread_bytes = 100'000;
  TestServer server({EndlessModel()}, options);
  SlowStream slow(server, kEndless);
  server.WaitUntilIdle();  // long before its million tokens
  const StreamOutput other = GenerateStream(server, Request("quick", 20));
  EXPECT_TRUE(other.status.ok());
  // What had been sent comes, and then the reason.
  const StreamOutput late = ReadAll(*slow.reader);
  EXPECT_GT(late.num_deltas, 0);
  EXPECT_EQ(late.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(DetailsOf(late.status).reason, "SLOW_READER");
  EXPECT_FALSE(DetailsOf(late.status).retry_delay.has_value());
}

TEST(LifecycleTest, AStreamThatIsNotReadForTooLongEndsAndSaysSo) {
  ServerOptions options;
  options.call_limits.max_unread_time = absl::Milliseconds(500);
  options.call_limits.max_unread_bytes = int64_t{1} << 40;
  TestServer server({EndlessModel()}, options);
  SlowStream slow(server, kEndless);
  server.WaitUntilIdle();
  const StreamOutput late = ReadAll(*slow.reader);
  // On a slow machine the second half of the patience may be over, too.
  EXPECT_THAT(late.status.error_code(),
              ::testing::AnyOf(grpc::StatusCode::RESOURCE_EXHAUSTED, grpc::StatusCode::CANCELLED));
}

TEST(LifecycleTest, AnAnswerThatIsNeverReadIsNotHeldForever) {
  ServerOptions options;
  options.call_limits.max_unread_time = absl::Milliseconds(100);
  TestServer server({EndlessModel()}, options);
  SlowStream slow(server, 30'000);
  const std::string open =
      R"(ultrasketch_open_calls{method="ultrasketch.v1.GenerationService/GenerateStream"})";
  while (server.Metric(open) != 0) std::this_thread::yield();
  EXPECT_EQ(server.Metric("ultrasketch_unread_bytes"), 0);
}

TEST(LifecycleTest, AClientThatNeverReadsCanVanish) {
  TestServer server({EndlessModel()});
  v1::GenerateRequest request = Request("slow", 20'000);
  request.set_logprobs(3);
  {
    grpc::ClientContext context;
    const Reader reader = server.generation().GenerateStream(&context, request);
    v1::GenerateStreamResponse first;
    ASSERT_TRUE(reader->Read(&first));
    server.WaitUntilIdle();
    context.TryCancel();
  }
  EXPECT_TRUE(GenerateStream(server, Request("next")).status.ok());
}

TEST(LifecycleTest, ConnectionsThatBreakReturnTheirBlocks) {
  TestServer server({EndlessModel()});
  BreakableProxy proxy(server.server().address().port);
  const auto stub = v1::GenerationService::NewStub(grpc::CreateChannel(
      "ipv4:127.0.0.1:" + std::to_string(proxy.port()), grpc::InsecureChannelCredentials()));
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<Reader> readers;
  for (int i = 0; i < 4; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    readers.push_back(stub->GenerateStream(contexts.back().get(), Request("go", kEndless)));
    v1::GenerateStreamResponse message;
    ASSERT_TRUE(readers.back()->Read(&message));
  }
  EXPECT_GT(server.engine_loop().stats().kv_blocks_used, 0);
  proxy.Break();
  server.WaitUntilIdle();
  for (const Reader& reader : readers) {
    EXPECT_EQ(ReadAll(*reader).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  }
}

TEST(LifecycleTest, SurvivesClientsThatVanishInAnyPhase) {
  TestModel model = EndlessModel();
  model.engine_loop.max_queued_requests = 8;
  model.engine_loop.max_running_sequences = 4;
  TestServer server({model});
  std::atomic<int> num_finished = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(static_cast<uint32_t>(t));
      const auto stub = v1::GenerationService::NewStub(server.NewChannel());
      for (int i = 0; i < 60; ++i) {
        grpc::ClientContext context;
        const auto microseconds = std::chrono::microseconds(random() % 4000);
        const bool use_deadline = random() % 2 == 0;
        if (use_deadline) {
          context.set_deadline(std::chrono::system_clock::now() + microseconds);
        }
        // Short ones end by themselves about when they are cancelled; long prompts take the other
        // threads' way.
        v1::GenerateRequest request =
            Request(std::string(random() % 4 == 0 ? 9000 : 5, 'x'), random() % 2 == 0 ? 3 : 5000);
        if (random() % 4 == 0) request.set_n(3);
        std::thread canceller([&] {
          if (use_deadline) return;
          std::this_thread::sleep_for(microseconds);
          context.TryCancel();
        });
        if (random() % 3 == 0) {
          v1::GenerateResponse response;
          stub->Generate(&context, request, &response);
        } else {
          const Reader reader = stub->GenerateStream(&context, request);
          ReadAll(*reader);
        }
        canceller.join();
        ++num_finished;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(num_finished, 8 * 60);
  server.WaitUntilIdle();
  EXPECT_TRUE(GenerateStream(server, Request("after")).status.ok());
}

TEST(LifecycleTest, DrainingLetsRequestsFinish) {
  Gate gate;
  TestModel model = EndlessModel();
  model.model.before_forward = gate.Hook();
  TestServer server({model});
  gate.LetThrough(2);
  grpc::ClientContext context;
  const Reader reader = server.generation().GenerateStream(&context, Request("finish", 50));
  gate.WaitForStep();
  std::thread drain([&] {
    server.server().SetNotServing();
    server.host().Drain(absl::InfiniteFuture());
    server.server().Shutdown(absl::InfiniteFuture());
  });
  while (server.host().List()[0].state != ModelState::kDraining) std::this_thread::yield();
  EXPECT_EQ(GenerateStream(server, Request("late")).status.error_code(),
            grpc::StatusCode::UNAVAILABLE);
  gate.Open();
  const StreamOutput output = ReadAll(*reader);
  EXPECT_TRUE(output.status.ok()) << output.status.error_message();
  EXPECT_EQ(output.token_ids.at(0).size(), 50u);
  drain.join();
}

TEST(LifecycleTest, TheEndOfDrainingIsUnavailableForThoseLeft) {
  TestServer server({EndlessModel()});
  grpc::ClientContext context;
  const Reader reader = server.generation().GenerateStream(&context, Request("go", kEndless));
  v1::GenerateStreamResponse message;
  ASSERT_TRUE(reader->Read(&message));
  std::thread drain([&] { server.host().Drain(absl::InfinitePast()); });
  const StreamOutput output = ReadAll(*reader);
  EXPECT_EQ(output.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(DetailsOf(output.status).reason, "DRAINING");
  drain.join();
}

TEST(LifecycleTest, AWatchOfTheHealthIsNotWaitedFor) {
  TestServer server;
  HealthWatch watch(server.NewChannel());
  EXPECT_EQ(watch.status(), "SERVING");
  // Far from what it takes, and from what a slow machine makes of it.
  const absl::Time deadline = absl::Now() + absl::Minutes(5);
  server.server().SetNotServing();
  EXPECT_EQ(watch.Next(), "NOT_SERVING");
  server.host().Drain(deadline);
  server.server().Shutdown(deadline);
  EXPECT_LT(absl::Now(), deadline);
  EXPECT_EQ(watch.Next(), "") << "it was open until the end";
}

TEST(LifecycleTest, ASecondDrainCutsTheFirstShort) {
  TestServer server({EndlessModel()});
  grpc::ClientContext context;
  const Reader reader = server.generation().GenerateStream(&context, Request("go", kEndless));
  v1::GenerateStreamResponse message;
  ASSERT_TRUE(reader->Read(&message));
  std::thread patient([&] { server.host().Drain(absl::InfiniteFuture()); });
  while (server.host().List()[0].state != ModelState::kDraining) std::this_thread::yield();
  server.host().Drain(absl::InfinitePast());
  patient.join();
  EXPECT_EQ(ReadAll(*reader).status.error_code(), grpc::StatusCode::UNAVAILABLE);
}

}  // namespace
}  // namespace ultrasketch
