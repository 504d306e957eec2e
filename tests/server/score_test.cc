#include <cmath>
#include <set>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/server/test_server.h"
#include "tests/serving/engine_loop/testing.h"

namespace ultrasketch {
namespace {

using ::testing::ElementsAre;
using ::testing::SizeIs;

grpc::Status Score(TestServer& server, const v1::ScoreRequest& request,
                   v1::ScoreResponse* response) {
  grpc::ClientContext context;
  return server.generation().Score(&context, request, response);
}

TEST(ScoreTest, GivesTheLogprobOfEveryTokenButTheFirst) {
  TestServer server;
  v1::ScoreRequest request;
  request.set_text("score");
  request.set_top_logprobs(2);
  v1::ScoreResponse response;
  const grpc::Status status = Score(server, request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.model(), "small");
  EXPECT_THAT(response.token_ids(), ElementsAre('s', 'c', 'o', 'r', 'e'));
  ASSERT_THAT(response.logprobs(), SizeIs(4));
  double sum = 0;
  for (int i = 0; i < 4; ++i) {
    const v1::TokenLogprobs& entry = response.logprobs(i);
    EXPECT_EQ(entry.token().token_id(), response.token_ids(i + 1));
    EXPECT_EQ(entry.token().text(), std::string(1, "core"[i]));
    EXPECT_THAT(entry.top(), SizeIs(2));
    sum += entry.token().logprob();

    std::vector<int32_t> before(response.token_ids().begin(), response.token_ids().begin() + i + 1);
    const double expected = LogProbability(HashLogits(before, 300), response.token_ids(i + 1));
    EXPECT_NEAR(entry.token().logprob(), expected, 1e-5);
  }
  EXPECT_NEAR(response.sum_logprob(), sum, 1e-5);
  EXPECT_NEAR(response.perplexity(), std::exp(-sum / 4), 1e-3);
}

TEST(ScoreTest, TextsOfTheTokensAreTheText) {
  TestServer server;
  v1::ScoreRequest request;
  request.set_text("a é € 😀 z");
  request.set_top_logprobs(20);
  v1::ScoreResponse response;
  const grpc::Status status = Score(server, request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  std::string text;
  std::string bytes;
  for (const v1::TokenLogprobs& entry : response.logprobs()) {
    text += entry.token().text();
    bytes += entry.token().bytes();
    EXPECT_EQ(entry.token().bytes().size(), 1u) << "a token for each byte";
    std::set<std::string> tops;
    for (const v1::TokenLogprob& top : entry.top()) {
      // Ids without a token are empty.
      if (top.token_id() > kEndToken) continue;
      EXPECT_EQ(top.bytes(), top.token_id() == kEndToken
                                 ? "<|end|>"
                                 : std::string(1, static_cast<char>(top.token_id())));
      EXPECT_TRUE(tops.insert(top.text()).second) << top.text();
    }
  }
  EXPECT_EQ(text, request.text().substr(1));
  EXPECT_EQ(bytes, request.text().substr(1));
}

TEST(ScoreTest, ATextGetsWhatTheTemplateAdds) {
  TestModel model;
  model.tokenizer = ByteTokenizer({}, /*has_template=*/true);
  TestServer server({model});
  v1::ScoreRequest request;
  request.set_text("ab");
  v1::ScoreResponse response;
  ASSERT_TRUE(Score(server, request, &response).ok());
  EXPECT_THAT(response.token_ids(), ElementsAre(kEndToken, 'a', 'b'));
  EXPECT_THAT(response.logprobs(), SizeIs(2));
  request.set_add_special_tokens(false);
  ASSERT_TRUE(Score(server, request, &response).ok());
  EXPECT_THAT(response.token_ids(), ElementsAre('a', 'b'));
}

TEST(ScoreTest, AnAnswerThatTheClientDoesNotTakeIsRefused) {
  TestServer server;
  v1::ScoreRequest request;
  request.set_text(std::string(200, 'x'));
  request.set_top_logprobs(20);
  v1::ScoreResponse response;
  ASSERT_TRUE(Score(server, request, &response).ok());
  const auto size = static_cast<int64_t>(response.ByteSizeLong());
  const std::string computed = R"(ultrasketch_prompt_tokens_total{model="small"})";
  EXPECT_EQ(server.Metric(computed), 200);
  request.set_max_response_bytes(size);
  EXPECT_TRUE(Score(server, request, &response).ok());
  request.set_max_response_bytes(size - 1);
  EXPECT_EQ(Score(server, request, &response).error_code(), grpc::StatusCode::OUT_OF_RANGE);
  EXPECT_EQ(server.Metric(computed), 600);
  // Certain before it is computed.
  request.set_max_response_bytes(size / 2);
  const grpc::Status status = Score(server, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::OUT_OF_RANGE);
  EXPECT_EQ(DetailsOf(status).reason, "RESPONSE_TOO_LARGE");
  EXPECT_EQ(server.Metric(computed), 600);
  EXPECT_EQ(server.Metric(R"(ultrasketch_requests_total{code="OUT_OF_RANGE",model="small"})"), 2);
}

TEST(ScoreTest, TakesTokenIds) {
  TestServer server;
  v1::ScoreRequest request;
  for (const int id : {1, 2, 3}) request.mutable_token_ids()->add_ids(id);
  v1::ScoreResponse response;
  ASSERT_TRUE(Score(server, request, &response).ok());
  EXPECT_THAT(response.logprobs(), SizeIs(2));
  EXPECT_EQ(server.Metric(R"(ultrasketch_prompt_tokens_total{model="small"})"), 3);
  EXPECT_EQ(server.Metric(R"(ultrasketch_generated_tokens_total{model="small"})"), 0);
}

TEST(ScoreTest, RefusesWhatItCannotScore) {
  TestServer server;
  const auto field_of = [&](const v1::ScoreRequest& request) {
    v1::ScoreResponse response;
    const grpc::Status status = Score(server, request, &response);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    return DetailsOf(status).fields;
  };
  v1::ScoreRequest request;
  EXPECT_THAT(field_of(request), ElementsAre("input"));
  request.set_text("a");
  EXPECT_THAT(field_of(request), ElementsAre("text"));
  request.set_text("abc");
  request.set_top_logprobs(10'000);
  EXPECT_THAT(field_of(request), ElementsAre("top_logprobs"));
  request.clear_top_logprobs();
  request.mutable_token_ids()->add_ids(1);
  request.mutable_token_ids()->add_ids(3000);
  EXPECT_THAT(field_of(request), ElementsAre("token_ids"));
}

TEST(ScoreTest, CancellingFreesTheRequest) {
  Gate gate;
  gate.Close();
  TestModel model;
  model.model.before_forward = gate.Hook();
  TestServer server({model});
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(50));
  v1::ScoreRequest request;
  request.set_text("never");
  v1::ScoreResponse response;
  EXPECT_EQ(server.generation().Score(&context, request, &response).error_code(),
            grpc::StatusCode::DEADLINE_EXCEEDED);
  gate.Open();
  server.WaitUntilIdle();
}

}  // namespace
}  // namespace ultrasketch
