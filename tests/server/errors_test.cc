// What bad requests and bad times are answered with: code, field, details.
#include <functional>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

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
      {"TopPZero", "top_p", [](M& m) { m.set_top_p(0); }},
      {"TopPOverOne", "top_p", [](M& m) { m.set_top_p(1.1f); }},
      {"TopKNegative", "top_k", [](M& m) { m.set_top_k(-1); }},
      {"MinPOverOne", "min_p", [](M& m) { m.set_min_p(1.5f); }},
      {"RepetitionPenaltyZero", "repetition_penalty", [](M& m) { m.set_repetition_penalty(0); }},
      {"RepetitionPenaltyThree", "repetition_penalty", [](M& m) { m.set_repetition_penalty(3); }},
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

TEST(ErrorsTest, AFullQueueIsResourceExhaustedWithRetryInfo) {
  Gate gate;
  gate.Close();
  TestModel model;
  model.model.before_forward = gate.Hook();
  model.engine_loop.max_queued_requests = 2;
  model.engine_loop.max_running_sequences = 1;
  TestServer server({model});
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateStreamResponse>>> readers;
  const auto start = [&] {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    readers.push_back(server.generation().GenerateStream(contexts.back().get(), Request("waits")));
  };
  start();
  gate.WaitForStep();
  // The first is being computed; two may wait.
  for (int waiting = 1; waiting <= 2; ++waiting) {
    start();
    while (server.engine_loop().stats().num_waiting < waiting) std::this_thread::yield();
  }
  const grpc::Status status = Generate(server, Request("one too many"));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  const ErrorDetails details = DetailsOf(status);
  EXPECT_EQ(details.reason, "QUEUE_FULL");
  ASSERT_TRUE(details.retry_delay.has_value());
  EXPECT_GT(*details.retry_delay, absl::ZeroDuration());
  EXPECT_EQ(
      server.Metric(R"(ultrasketch_rejected_requests_total{model="small",reason="queue_full"})"),
      1);
  gate.Open();
  for (auto& reader : readers) EXPECT_TRUE(ReadAll(*reader).status.ok());
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
