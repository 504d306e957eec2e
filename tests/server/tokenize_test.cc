#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/server/test_server.h"
#include "tests/serving/engine_loop/testing.h"

namespace ultrasketch {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

grpc::Status Tokenize(TestServer& server, const v1::TokenizeRequest& request,
                      v1::TokenizeResponse* response) {
  grpc::ClientContext context;
  return server.generation().Tokenize(&context, request, response);
}

grpc::Status Detokenize(TestServer& server, const v1::DetokenizeRequest& request,
                        v1::DetokenizeResponse* response) {
  grpc::ClientContext context;
  return server.generation().Detokenize(&context, request, response);
}

TEST(TokenizeTest, GivesIdsAndSpellings) {
  TestServer server;
  v1::TokenizeRequest request;
  request.set_text("a b<|end|>");
  v1::TokenizeResponse response;
  ASSERT_TRUE(Tokenize(server, request, &response).ok());
  EXPECT_THAT(response.token_ids(), ElementsAre('a', ' ', 'b', kEndToken));
  EXPECT_EQ(response.tokens_size(), 4);
  EXPECT_EQ(response.tokens(0), "a");
  EXPECT_EQ(response.tokens(3), "<|end|>");
}

TEST(TokenizeTest, SpellingsOfSpecialTokensCanStayText) {
  TestModel model;
  model.tokenizer = ByteTokenizer({}, /*has_template=*/true);
  TestServer server({model});
  v1::TokenizeRequest request;
  request.set_text("a<|end|>");
  v1::TokenizeResponse response;
  ASSERT_TRUE(Tokenize(server, request, &response).ok());
  EXPECT_THAT(response.token_ids(), ElementsAre(kEndToken, 'a', kEndToken));
  request.set_split_special_tokens(true);
  request.set_add_special_tokens(false);
  ASSERT_TRUE(Tokenize(server, request, &response).ok());
  EXPECT_THAT(response.token_ids(), ElementsAreArray(Bytes("a<|end|>")));
}

TEST(TokenizeTest, AnAnswerThatTheClientDoesNotTakeIsRefused) {
  TestServer server;
  v1::TokenizeRequest request;
  request.set_text(std::string(1'200'000, 'x'));  // four bytes of answer each
  v1::TokenizeResponse response;
  const grpc::Status status = Tokenize(server, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::OUT_OF_RANGE);
  EXPECT_EQ(DetailsOf(status).reason, "RESPONSE_TOO_LARGE");
  EXPECT_FALSE(DetailsOf(status).retry_delay.has_value());
  EXPECT_THAT(status.error_message(), HasSubstr("grpc.max_receive_message_length"));
  request.set_max_response_bytes(-1);
  ASSERT_TRUE(Tokenize(server, request, &response).ok());
  EXPECT_EQ(response.token_ids_size(), 1'200'000);
  request.set_text("xy");
  request.set_max_response_bytes(9);
  EXPECT_EQ(Tokenize(server, request, &response).error_code(), grpc::StatusCode::OUT_OF_RANGE);
  request.set_max_response_bytes(10);  // list of two ids, two spellings
  EXPECT_TRUE(Tokenize(server, request, &response).ok());
  request.set_max_response_bytes(0);
  EXPECT_THAT(DetailsOf(Tokenize(server, request, &response)).fields,
              ElementsAre("max_response_bytes"));
}

TEST(TokenizeTest, AnEmptyTextHasNoTokens) {
  TestServer server;
  v1::TokenizeResponse response;
  ASSERT_TRUE(Tokenize(server, {}, &response).ok());
  EXPECT_THAT(response.token_ids(), IsEmpty());
}

TEST(TokenizeTest, AConversationGivesTheIdsOfItsPrompt) {
  TestModel model;
  model.tokenizer = ByteTokenizer({}, /*has_template=*/true);
  model.chat_template = kTestChatTemplate;
  TestServer server({model});
  v1::TokenizeRequest request;
  *request.mutable_messages() = Chat({{"user", "a<|end|>"}});
  v1::TokenizeResponse response;
  ASSERT_TRUE(Tokenize(server, request, &response).ok());
  std::vector<int32_t> expected = Bytes("[user]a<|end|>");
  expected.push_back(kEndToken);
  for (const int32_t id : Bytes("[assistant]")) expected.push_back(id);
  EXPECT_THAT(response.token_ids(), ElementsAreArray(expected));
  EXPECT_EQ(response.tokens_size(), response.token_ids_size());
}

TEST(TokenizeTest, AConversationIsRefusedAsInGenerate) {
  TestServer server;
  v1::TokenizeRequest request;
  *request.mutable_messages() = Chat({{"user", "hello"}});
  v1::TokenizeResponse response;
  const grpc::Status status = Tokenize(server, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(DetailsOf(status).fields, ElementsAre("messages"));
  EXPECT_THAT(status.error_message(), HasSubstr("no chat template"));
}

TEST(TokenizeTest, ALongConversationIsHeldAgainstTheAnswersSize) {
  TestModel model;
  model.chat_template = kTestChatTemplate;
  TestServer server({model});
  v1::TokenizeRequest request;
  *request.mutable_messages() = Chat({{"user", std::string(100, 'x')}});
  request.set_max_response_bytes(100);
  v1::TokenizeResponse response;
  EXPECT_EQ(Tokenize(server, request, &response).error_code(), grpc::StatusCode::OUT_OF_RANGE);
}

TEST(TokenizeTest, LongTextsAreTokenized) {
  TestServer server;
  v1::TokenizeRequest request;
  request.set_text(std::string(300'000, 'x'));
  v1::TokenizeResponse response;
  ASSERT_TRUE(Tokenize(server, request, &response).ok());
  EXPECT_EQ(response.token_ids_size(), 300'000);
}

TEST(TokenizeTest, UnknownModelIsNotFound) {
  TestServer server;
  v1::TokenizeRequest request;
  request.set_model("none");
  v1::TokenizeResponse response;
  EXPECT_EQ(Tokenize(server, request, &response).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST(DetokenizeTest, IsTheInverse) {
  TestServer server;
  v1::DetokenizeRequest request;
  for (const int32_t id : Bytes("a b")) request.add_token_ids(id);
  request.add_token_ids(kEndToken);
  v1::DetokenizeResponse response;
  ASSERT_TRUE(Detokenize(server, request, &response).ok());
  EXPECT_EQ(response.text(), "a b<|end|>");
  request.set_skip_special_tokens(true);
  ASSERT_TRUE(Detokenize(server, request, &response).ok());
  EXPECT_EQ(response.text(), "a b");
}

TEST(DetokenizeTest, AnAnswerThatTheClientDoesNotTakeIsRefused) {
  TestServer server;
  v1::DetokenizeRequest request;
  for (const int32_t id : Bytes("a long text")) request.add_token_ids(id);
  request.set_max_response_bytes(12);
  v1::DetokenizeResponse response;
  const grpc::Status status = Detokenize(server, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::OUT_OF_RANGE);
  EXPECT_EQ(DetailsOf(status).reason, "RESPONSE_TOO_LARGE");
  request.set_max_response_bytes(13);
  EXPECT_TRUE(Detokenize(server, request, &response).ok());
}

TEST(DetokenizeTest, PartsOfCharactersBecomeReplacementCharacters) {
  TestServer server;
  v1::DetokenizeRequest request;
  request.add_token_ids(0xC3);
  v1::DetokenizeResponse response;
  ASSERT_TRUE(Detokenize(server, request, &response).ok());
  EXPECT_EQ(response.text(), "\xEF\xBF\xBD");
}

TEST(DetokenizeTest, IdsOutsideTheVocabularyAreNamed) {
  TestServer server;
  v1::DetokenizeRequest request;
  request.add_token_ids(1);
  request.add_token_ids(300);
  v1::DetokenizeResponse response;
  const grpc::Status status = Detokenize(server, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(DetailsOf(status).fields, ElementsAre("token_ids"));
}

}  // namespace
}  // namespace ultrasketch
