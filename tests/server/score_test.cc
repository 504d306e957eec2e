#include <cmath>
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
