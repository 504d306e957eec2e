// What bad requests and bad times are answered with: code, field, details.
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "server/work_queue.h"
#include "tests/server/test_server.h"

namespace ultrasketch {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

grpc::Status Generate(TestServer& server, const v1::GenerateRequest& request) {
  grpc::ClientContext context;
  v1::GenerateResponse response;
  return server.generation().Generate(&context, request, &response);
}

struct BadRequestCase {
  const char* name;
  const char* field;
  std::function<void(v1::GenerateRequest&)> change;
};

std::vector<BadRequestCase> BadRequests() {
  using M = v1::GenerateRequest;
  return {
      {"NoInput", "input", [](M& m) { m.clear_text(); }},
      {"EmptyText", "text", [](M& m) { m.set_text(""); }},
      {"EmptyTokenIds", "token_ids", [](M& m) { m.mutable_token_ids(); }},
      {"IdOutsideVocabulary", "token_ids", [](M& m) { m.mutable_token_ids()->add_ids(300); }},
      {"NegativeId", "token_ids", [](M& m) { m.mutable_token_ids()->add_ids(-1); }},
      {"OverContext", "text", [](M& m) { m.set_text(std::string(300, 'a')); }},
      {"TenMegabytes", "text", [](M& m) { m.set_text(std::string(10'000'000, 'a')); }},
      {"MaxTokensZero", "max_tokens", [](M& m) { m.set_max_tokens(0); }},
      {"MaxTokensNegative", "max_tokens", [](M& m) { m.set_max_tokens(-1); }},
      {"MinTokensOverMaxTokens", "min_tokens", [](M& m) { m.set_min_tokens(9); }},
      {"TemperatureNegative", "temperature", [](M& m) { m.set_temperature(-0.1f); }},
      {"TemperatureNan", "temperature", [](M& m) { m.set_temperature(std::nanf("")); }},
      {"TemperatureInfinite", "temperature", [](M& m) { m.set_temperature(HUGE_VALF); }},
      {"TopPNegative", "top_p", [](M& m) { m.set_top_p(-0.1f); }},
      {"TopPOverOne", "top_p", [](M& m) { m.set_top_p(1.1f); }},
      {"TopKNegative", "top_k", [](M& m) { m.set_top_k(-1); }},
      {"MinPOverOne", "min_p", [](M& m) { m.set_min_p(1.5f); }},
      {"RepetitionPenaltyZero", "repetition_penalty", [](M& m) { m.set_repetition_penalty(0); }},
      {"RepetitionPenaltyNan", "repetition_penalty",
       [](M& m) { m.set_repetition_penalty(std::nanf("")); }},
      {"RepetitionPenaltyInfinite", "repetition_penalty",
       [](M& m) { m.set_repetition_penalty(HUGE_VALF); }},
      {"MinTokensAndOnlyEndTokens", "min_tokens",
       [](M& m) {
         m.set_min_tokens(1);
         for (int id = 0; id < 300; ++id) m.add_stop_token_ids(id);
       }},
      {"MaxResponseBytesZero", "max_response_bytes", [](M& m) { m.set_max_response_bytes(0); }},
      {"MaxResponseBytesNegative", "max_response_bytes",
       [](M& m) { m.set_max_response_bytes(-2); }},
      {"PresencePenalty", "presence_penalty", [](M& m) { m.set_presence_penalty(-2.5f); }},
      {"FrequencyPenalty", "frequency_penalty", [](M& m) { m.set_frequency_penalty(3); }},
      {"EmptyStop", "stop", [](M& m) { m.add_stop(""); }},
      {"LongStop", "stop", [](M& m) { m.add_stop(std::string(100'000, 'x')); }},
      {"ManyStops", "stop",
       [](M& m) {
         for (int i = 0; i < 10'000; ++i) m.add_stop("stop" + std::to_string(i));
       }},
      {"StopIdOutsideVocabulary", "stop_token_ids", [](M& m) { m.add_stop_token_ids(1 << 30); }},
      {"NoCompletions", "n", [](M& m) { m.set_n(0); }},
      {"ManyCompletions", "n", [](M& m) { m.set_n(1'000'000); }},
      {"ManyLogprobs", "logprobs", [](M& m) { m.set_logprobs(1000); }},
      {"NegativeLogprobs", "logprobs", [](M& m) { m.set_logprobs(-1); }},
      {"ManyPromptLogprobs", "prompt_logprobs", [](M& m) { m.set_prompt_logprobs(1000); }},
      {"BiasTooLarge", "logit_bias", [](M& m) { (*m.mutable_logit_bias())[5] = 1000; }},
      {"ManyBiases", "logit_bias",
       [](M& m) {
         for (int id = 0; id < 100'000; ++id) (*m.mutable_logit_bias())[id] = 1;
       }},
      {"BiasOutsideVocabulary", "logit_bias", [](M& m) { (*m.mutable_logit_bias())[300] = 1; }},
  };
}

class BadRequestTest : public ::testing::TestWithParam<BadRequestCase> {
 protected:
  static void SetUpTestSuite() { server_ = new TestServer(); }
  static void TearDownTestSuite() {
    delete server_;
    server_ = nullptr;
  }
  static TestServer* server_;
};

TestServer* BadRequestTest::server_ = nullptr;

TEST_P(BadRequestTest, IsInvalidArgumentNamingTheField) {
  v1::GenerateRequest request = Request("hello");
  GetParam().change(request);
  const grpc::Status unary = Generate(*server_, request);
  EXPECT_EQ(unary.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(unary.error_message(), HasSubstr(GetParam().field));
  EXPECT_THAT(DetailsOf(unary).fields, ElementsAre(GetParam().field));
  const grpc::Status stream = GenerateStream(*server_, request).status;
  EXPECT_EQ(stream.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(stream.error_message(), unary.error_message());
}

INSTANTIATE_TEST_SUITE_P(All, BadRequestTest, ::testing::ValuesIn(BadRequests()),
                         [](const auto& param) { return std::string(param.param.name); });

TEST(ErrorsTest, UnknownModelIsNotFoundAndNamesTheKnownOnes) {
  TestServer server;
  v1::GenerateRequest request = Request("hello");
  request.set_model("enormous");
  const grpc::Status status = Generate(server, request);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_THAT(status.error_message(), AllOf(HasSubstr("enormous"), HasSubstr("small")));
  EXPECT_EQ(DetailsOf(status).reason, "MODEL_NOT_FOUND");
  EXPECT_EQ(server.Metric(R"(ultrasketch_requests_total{code="NOT_FOUND",model=""})"), 1);
}

TEST(ErrorsTest, NoModelNamedAmongSeveralIsInvalidArgument) {
  TestModel second;
  second.name = "other";
  TestServer server({TestModel(), second});
  const grpc::Status status = Generate(server, Request("hello"));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(DetailsOf(status).fields, ElementsAre("model"));
  v1::GenerateRequest request = Request("hello");
  request.set_model("other");
  EXPECT_TRUE(Generate(server, request).ok());
}

// What the trailing metadata tells gRPC's retries; "" when it does not.
std::string PushbackOf(const grpc::ClientContext& context) {
  const auto& metadata = context.GetServerTrailingMetadata();
  const auto found = metadata.find("grpc-retry-pushback-ms");
  return found == metadata.end() ? "" : std::string(found->second.data(), found->second.length());
}

// A server of which one request runs and two wait: the queue is full until the gate opens.
TEST(ErrorsTest, MoreCompletionsThanTheQueueEverHoldsAreRefusedForGood) {
  TestModel model;
  model.engine_loop.max_queued_requests = 2;
  TestServer server({model});
  v1::GenerateRequest request = Request("prompt");
  request.set_n(3);
  const grpc::Status status = GenerateStream(server, request).status;
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(DetailsOf(status).fields, ElementsAre("n"));
  request.set_n(2);
  EXPECT_TRUE(GenerateStream(server, request).status.ok());
}

TEST(ErrorsTest, AClientThatWaitsForEachAnswerHasOneRequestOpen) {
  ServerOptions options;
  options.call_limits.max_requests_per_client = 1;
  TestServer server({TestModel()}, options);
  for (int i = 0; i < 200; ++i) {
    const grpc::Status status = GenerateStream(server, Request("prompt", 1)).status;
    ASSERT_TRUE(status.ok()) << i << ": " << status.error_message();
  }
}

class FullQueueTest : public ::testing::Test {
 protected:
  void SetUp() override {
    gate_.Close();
    TestModel model;
    model.model.before_forward = gate_.Hook();
    model.engine_loop.max_queued_requests = 2;
    model.engine_loop.max_running_sequences = 1;
    server_.emplace(std::vector<TestModel>{model});
    Start();
    gate_.WaitForStep();
    for (int waiting = 1; waiting <= 2; ++waiting) {
      Start();
      while (server_->engine_loop().stats().num_waiting < waiting) std::this_thread::yield();
    }
  }
  void TearDown() override {
    gate_.Open();
    for (auto& reader : readers_) EXPECT_TRUE(ReadAll(*reader).status.ok());
  }

  double NumRejected() {
    return server_
        ->Metric(R"(ultrasketch_rejected_requests_total{model="small",reason="queue_full"})")
        .value_or(-1);
  }

  Gate gate_;
  std::optional<TestServer> server_;

 private:
  void Start() {
    contexts_.push_back(std::make_unique<grpc::ClientContext>());
    readers_.push_back(
        server_->generation().GenerateStream(contexts_.back().get(), Request("waits")));
  }

  std::vector<std::unique_ptr<grpc::ClientContext>> contexts_;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateStreamResponse>>> readers_;
};

TEST_F(FullQueueTest, IsResourceExhaustedAndSaysWhenToRetry) {
  const auto check = [](const grpc::Status& status, const grpc::ClientContext& context) {
    EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
    const ErrorDetails details = DetailsOf(status);
    EXPECT_EQ(details.reason, "QUEUE_FULL");
    ASSERT_TRUE(details.retry_delay.has_value());
    EXPECT_GT(*details.retry_delay, absl::ZeroDuration());
    EXPECT_EQ(PushbackOf(context), std::to_string(absl::ToInt64Milliseconds(*details.retry_delay)));
  };
  {
    grpc::ClientContext context;
    v1::GenerateResponse response;
    check(server_->generation().Generate(&context, Request("one too many"), &response), context);
  }
  {
    grpc::ClientContext context;
    v1::ScoreRequest request;
    request.set_text("one too many");
    v1::ScoreResponse response;
    check(server_->generation().Score(&context, request, &response), context);
  }
  {
    grpc::ClientContext context;
    const auto reader = server_->generation().GenerateStream(&context, Request("one too many"));
    const grpc::Status status = ReadAll(*reader).status;
    check(status, context);
  }
  EXPECT_EQ(NumRejected(), 3);
}

TEST_F(FullQueueTest, RetriesOfTheLibraryComeAsLateAsTheyWereAsked) {
  grpc::ChannelArguments arguments;
  arguments.SetServiceConfigJSON(R"({"methodConfig": [{"name": [{}], "retryPolicy": {
      "maxAttempts": 3, "initialBackoff": "0.001s", "maxBackoff": "0.001s", "backoffMultiplier": 1,
      "retryableStatusCodes": ["RESOURCE_EXHAUSTED"]}}]})");
  const auto stub = v1::GenerationService::NewStub(
      grpc::CreateCustomChannel(server_->address(), grpc::InsecureChannelCredentials(), arguments));
  const absl::Time start = absl::Now();
  grpc::ClientContext context;
  v1::GenerateResponse response;
  const grpc::Status status = stub->Generate(&context, Request("one too many"), &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(NumRejected(), 3);
  // Two waits of the delay, where the policy alone would have waited for 2 ms.
  EXPECT_GE(absl::Now() - start, 2 * DetailsOf(status).retry_delay.value());
}

TEST_F(FullQueueTest, IsSaidBeforeTheRequestIsLookedAt) {
  // Neither would be answered so if the text were tokenized, or its thread waited for.
  for (const size_t num_bytes : {size_t{300}, 2 * kShortTextBytes}) {
    const grpc::Status status = Generate(*server_, Request(std::string(num_bytes, 'a')));
    EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
    EXPECT_EQ(DetailsOf(status).reason, "QUEUE_FULL");
  }
}

TEST(ErrorsTest, TooManyWaitingTokensAreResourceExhausted) {
  Gate gate;
  gate.Close();
  TestModel model;
  model.model.before_forward = gate.Hook();
  model.engine_loop.max_queued_tokens = 100;
  model.engine_loop.max_running_sequences = 1;
  TestServer server({model});
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateStreamResponse>>> readers;
  const auto start = [&](size_t num_tokens) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    readers.push_back(server.generation().GenerateStream(contexts.back().get(),
                                                         Request(std::string(num_tokens, 'a'))));
  };
  start(10);
  gate.WaitForStep();
  start(80);
  const std::string waiting = R"(ultrasketch_tokens_waiting{model="small"})";
  while (server.Metric(waiting) != 80) std::this_thread::yield();
  const grpc::Status status = Generate(server, Request(std::string(30, 'b')));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(DetailsOf(status).reason, "QUEUE_FULL");
  EXPECT_THAT(status.error_message(), HasSubstr("80 tokens"));
  start(20);
  while (server.Metric(waiting) != 100) std::this_thread::yield();
  gate.Open();
  for (auto& reader : readers) EXPECT_TRUE(ReadAll(*reader).status.ok());
  EXPECT_EQ(server.Metric(waiting), 0);
}

TEST(ErrorsTest, AClientHasSoManyRequestsOpenAndNoMore) {
  Gate gate;
  gate.Close();
  TestModel model;
  model.model.before_forward = gate.Hook();
  ServerOptions options;
  options.call_limits.max_requests_per_client = 2;
  TestServer server({model}, options);
  const auto prepare = [](grpc::ClientContext& context, const std::string& client) {
    context.AddMetadata("client-id", client);
  };
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateStreamResponse>>> readers;
  for (const char* client : {"busy", "busy", "other"}) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    prepare(*contexts.back(), client);
    readers.push_back(server.generation().GenerateStream(contexts.back().get(), Request("x")));
  }
  const auto num_open = [&] {
    const EngineLoopStats stats = server.engine_loop().stats();
    return stats.num_running + stats.num_waiting;
  };
  while (num_open() < 3) std::this_thread::yield();
  {
    grpc::ClientContext context;
    prepare(context, "busy");
    v1::GenerateResponse response;
    const grpc::Status status = server.generation().Generate(&context, Request("x"), &response);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
    EXPECT_EQ(DetailsOf(status).reason, "CLIENT_FULL");
    EXPECT_TRUE(DetailsOf(status).retry_delay.has_value());
  }
  EXPECT_EQ(server.Metric(R"(ultrasketch_rejected_requests_total{model="",reason="client_full"})"),
            1);
  gate.Open();
  for (auto& reader : readers) EXPECT_TRUE(ReadAll(*reader).status.ok());
  // A client can see the end of a call before the server has let go of it.
  grpc::Status status;
  do {
    grpc::ClientContext context;
    prepare(context, "busy");
    v1::GenerateResponse response;
    status = server.generation().Generate(&context, Request("x"), &response);
  } while (status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(status.ok());
}

TEST(ErrorsTest, ADeadlineCenturiesAwayIsNone) {
  TestServer server;
  for (const int64_t years : {100, 400, 5000}) {
    grpc::ClientContext context;
    gpr_timespec deadline = gpr_now(GPR_CLOCK_REALTIME);
    deadline.tv_sec += years * 365 * 24 * 3600;
    context.set_deadline(deadline);
    v1::GenerateResponse response;
    const grpc::Status status = server.generation().Generate(&context, Request("x"), &response);
    EXPECT_TRUE(status.ok()) << years << " years: " << status.error_message();
  }
}

TEST(ErrorsTest, RefusalsThatARetryCannotMendAskForNone) {
  TestServer server;
  {
    grpc::ClientContext context;
    v1::GenerateResponse response;
    const grpc::Status status =
        server.generation().Generate(&context, Request(std::string(300, 'a')), &response);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_EQ(PushbackOf(context), "");
    EXPECT_FALSE(DetailsOf(status).retry_delay.has_value());
  }
  server.host().Drain(absl::InfiniteFuture());
  grpc::ClientContext context;
  v1::GenerateResponse response;
  EXPECT_EQ(server.generation().Generate(&context, Request("late"), &response).error_code(),
            grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(PushbackOf(context), "");
}

TEST(ErrorsTest, DrainingIsUnavailable) {
  TestServer server;
  server.host().Drain(absl::InfiniteFuture());
  const grpc::Status status = Generate(server, Request("late"));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(DetailsOf(status).reason, "DRAINING");
}

TEST(ErrorsTest, AFailingModelIsInternal) {
  TestModel model;
  model.model.before_forward = [](int64_t) { return absl::InternalError("the device is gone"); };
  TestServer server({model});
  const grpc::Status unary = Generate(server, Request("x"));
  EXPECT_EQ(unary.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_THAT(unary.error_message(), HasSubstr("the device is gone"));
  const StreamOutput stream = GenerateStream(server, Request("x"));
  EXPECT_EQ(stream.status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_THAT(stream.finals, IsEmpty());
  EXPECT_EQ(server.Metric(R"(ultrasketch_requests_total{code="INTERNAL",model="small"})"), 2);
}

TEST(ErrorsTest, ARequestThatLeavesNoTokenToChooseLeavesNoLineInTheLog) {
  TestServer server;
  v1::GenerateRequest request = Request("x");
  request.set_min_tokens(1);
  for (int id = 0; id < 300; ++id) request.add_stop_token_ids(id);
  ::testing::internal::CaptureStderr();
  const grpc::Status status = Generate(server, request);
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), IsEmpty());
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST(ErrorsTest, PenaltiesFarFromOneAreNoError) {
  TestServer server;
  for (const float penalty : {1e-38f, 3e38f}) {
    v1::GenerateRequest request = Request("x");
    request.set_repetition_penalty(penalty);
    EXPECT_TRUE(Generate(server, request).ok()) << penalty;
  }
}

TEST(ErrorsTest, MessagesOverTheLimitAreResourceExhausted) {
  ServerOptions options;
  options.max_message_bytes = 100'000;
  TestServer server({TestModel()}, options);
  EXPECT_EQ(Generate(server, Request(std::string(200'000, 'a'))).error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(Generate(server, Request("a")).ok());
}

}  // namespace
}  // namespace ultrasketch
