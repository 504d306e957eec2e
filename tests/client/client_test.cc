#include "client/client.h"

#include <cstdlib>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/notification.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include <gmock/gmock.h>
#include <google/protobuf/any.pb.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <gtest/gtest.h>

#include "client/grpc_status.h"
#include "ultrasketch/v1/generation.grpc.pb.h"
#include "ultrasketch/v1/model.grpc.pb.h"

namespace ultrasketch::client {
namespace {

using ::testing::ElementsAre;

// A server whose answers the test gives.
class FakeGeneration : public v1::GenerationService::Service {
 public:
  using Writer = grpc::ServerWriter<v1::GenerateStreamResponse>;

  grpc::Status Generate(grpc::ServerContext*, const v1::GenerateRequest* request,
                        v1::GenerateResponse* response) override {
    last_request = *request;
    *response = generate_response;
    return grpc::Status::OK;
  }
  grpc::Status GenerateStream(grpc::ServerContext* context, const v1::GenerateRequest* request,
                              Writer* writer) override {
    last_request = *request;
    return stream(context, writer);
  }
  grpc::Status Tokenize(grpc::ServerContext*, const v1::TokenizeRequest* request,
                        v1::TokenizeResponse* response) override {
    last_tokenize_request = *request;
    for (const char c : request->text()) response->add_token_ids(c);
    return grpc::Status::OK;
  }

  v1::GenerateRequest last_request;
  v1::TokenizeRequest last_tokenize_request;
  v1::GenerateResponse generate_response;
  std::function<grpc::Status(grpc::ServerContext*, Writer*)> stream;
};

class FakeModels : public v1::ModelService::Service {
 public:
  grpc::Status ListModels(grpc::ServerContext* context, const v1::ListModelsRequest*,
                          v1::ListModelsResponse* response) override {
    const auto sent = context->client_metadata().find("authorization");
    last_authorization = sent == context->client_metadata().end()
                             ? ""
                             : std::string(sent->second.data(), sent->second.size());
    v1::Model* model = response->add_models();
    model->set_name("small");
    model->set_state(v1::MODEL_STATE_READY);
    model->set_bits_per_weight_linear(0.5);
    model->mutable_memory()->set_weights_bytes(1234);
    return grpc::Status::OK;
  }
  grpc::Status UnloadModel(grpc::ServerContext*, const v1::UnloadModelRequest* request,
                           v1::UnloadModelResponse*) override {
    return {grpc::StatusCode::NOT_FOUND, absl::StrCat("no model ", request->name())};
  }

  std::string last_authorization;
};

class ClientTest : public ::testing::Test {
 protected:
  void SetUp() override {
    int port = 0;
    grpc::EnableDefaultHealthCheckService(true);
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(&generation_);
    builder.RegisterService(&models_);
    server_ = builder.BuildAndStart();
    ASSERT_NE(server_, nullptr);
    target_ = absl::StrCat("127.0.0.1:", port);
    client_ = *Client::Create(target_);
  }
  void TearDown() override { server_->Shutdown(std::chrono::system_clock::now()); }

  FakeGeneration generation_;
  FakeModels models_;
  std::unique_ptr<grpc::Server> server_;
  std::string target_;
  std::unique_ptr<Client> client_;
};

GenerateRequest Request(const std::string& prompt) {
  GenerateRequest request;
  request.prompt = prompt;
  return request;
}

v1::GenerateStreamResponse Delta(int index, const std::string& text, int token_id) {
  v1::GenerateStreamResponse message;
  message.mutable_delta()->set_index(index);
  message.mutable_delta()->set_text(text);
  message.mutable_delta()->add_token_ids(token_id);
  return message;
}

v1::GenerateStreamResponse Final(int index, int completion_tokens) {
  v1::GenerateStreamResponse message;
  v1::GenerateFinal* final_message = message.mutable_final();
  final_message->set_index(index);
  final_message->set_finish_reason(v1::FINISH_REASON_LENGTH);
  final_message->mutable_usage()->set_prompt_tokens(3);
  final_message->mutable_usage()->set_completion_tokens(completion_tokens);
  final_message->mutable_usage()->set_total_tokens(3 + completion_tokens);
  final_message->set_seed(99);
  final_message->mutable_timing()->mutable_decode()->set_nanos(5'000'000);
  return message;
}

TEST_F(ClientTest, AsksForHealth) {
  EXPECT_EQ(*client_->Health(""), "SERVING");
  EXPECT_EQ(client_->Health("small").status().code(), absl::StatusCode::kNotFound);
  server_->GetHealthCheckService()->SetServingStatus("small", false);
  EXPECT_EQ(*client_->Health("small"), "NOT_SERVING");
}

TEST_F(ClientTest, StreamsDeltasAndReturnsTheWhole) {
  generation_.stream = [](grpc::ServerContext*, FakeGeneration::Writer* writer) {
    writer->Write(Delta(0, "once ", 1));
    writer->Write(Delta(1, "twice ", 2));
    writer->Write(Delta(0, "more", 3));
    writer->Write(Final(0, 2));
    writer->Write(Final(1, 1));
    return grpc::Status::OK;
  };
  std::vector<std::string> seen;
  const auto response = client_->GenerateStream(
      Request("x"), [&](const GenerateDelta& delta) { seen.push_back(delta.text); });
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_THAT(seen, ElementsAre("once ", "twice ", "more"));
  ASSERT_EQ(response->completions.size(), 2u);
  EXPECT_EQ(response->completions[0].text, "once more");
  EXPECT_THAT(response->completions[0].token_ids, ElementsAre(1, 3));
  EXPECT_EQ(response->completions[1].finish_reason, FinishReason::kLength);
  EXPECT_EQ(response->usage.prompt_tokens, 3);
  EXPECT_EQ(response->usage.completion_tokens, 3);
  EXPECT_EQ(response->usage.total_tokens, 6);
  EXPECT_EQ(response->seed, 99u);
  EXPECT_EQ(response->timing.decode, absl::Milliseconds(5));
}

TEST_F(ClientTest, LeavesUnsetOptionsUnset) {
  GenerateRequest request;
  request.prompt = std::vector<int32_t>{4, 5};
  request.top_k = 0;
  ASSERT_TRUE(client_->Generate(request).ok());
  const v1::GenerateRequest& received = generation_.last_request;
  EXPECT_FALSE(received.has_model());
  EXPECT_FALSE(received.has_temperature());
  EXPECT_FALSE(received.has_seed());
  EXPECT_TRUE(received.has_top_k());
  EXPECT_EQ(received.token_ids().ids_size(), 2);
}

TEST_F(ClientTest, AsksForAnswersOfAnySize) {
  ASSERT_TRUE(client_->Generate(Request("x")).ok());
  EXPECT_EQ(generation_.last_request.max_response_bytes(), -1);
  generation_.generate_response.add_completions()->set_text(std::string(5 << 20, 'x'));
  const auto response = client_->Generate(Request("x"));
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(response->completions.front().text.size(), size_t{5} << 20);
}

TEST_F(ClientTest, SaysHowATextIsToBeTokenized) {
  GenerateRequest request = Request("x");
  ASSERT_TRUE(client_->Generate(request).ok());
  EXPECT_FALSE(generation_.last_request.has_add_special_tokens());
  EXPECT_FALSE(generation_.last_request.has_split_special_tokens());
  request.add_special_tokens = false;
  request.split_special_tokens = true;
  ASSERT_TRUE(client_->Generate(request).ok());
  EXPECT_TRUE(generation_.last_request.has_add_special_tokens());
  EXPECT_FALSE(generation_.last_request.add_special_tokens());
  EXPECT_TRUE(generation_.last_request.split_special_tokens());
}

TEST_F(ClientTest, LogprobsKeepTextAndBytes) {
  v1::TokenLogprob* token =
      generation_.generate_response.add_completions()->add_logprobs()->mutable_token();
  token->set_token_id(7);
  token->set_text("\uFFFD");
  token->set_bytes("\xE2\x82");
  const auto response = client_->Generate(Request("x"));
  ASSERT_TRUE(response.ok()) << response.status();
  const TokenLogprob& received = response->completions.front().logprobs.front().token;
  EXPECT_EQ(received.text, "\uFFFD");
  EXPECT_EQ(received.bytes, "\xE2\x82");
}

TEST_F(ClientTest, StopCancelsAStream) {
  absl::Notification server_saw_cancel;
  generation_.stream = [&](grpc::ServerContext* context, FakeGeneration::Writer* writer) {
    while (!context->IsCancelled()) {
      writer->Write(Delta(0, "a", 1));
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    server_saw_cancel.Notify();
    return grpc::Status::CANCELLED;
  };
  std::stop_source stop;
  const auto response =
      client_->GenerateStream(Request("x"), [&](const GenerateDelta&) { stop.request_stop(); },
                              {absl::InfiniteDuration(), stop.get_token()});
  EXPECT_TRUE(absl::IsCancelled(response.status())) << response.status();
  server_saw_cancel.WaitForNotification();
}

TEST_F(ClientTest, StopBeforeTheCallCancelsIt) {
  generation_.stream = [](grpc::ServerContext*, FakeGeneration::Writer*) {
    return grpc::Status::OK;
  };
  std::stop_source stop;
  stop.request_stop();
  const auto response =
      client_->GenerateStream(Request("x"), nullptr, {absl::InfiniteDuration(), stop.get_token()});
  EXPECT_TRUE(absl::IsCancelled(response.status())) << response.status();
}

TEST_F(ClientTest, TimeoutIsDeadlineExceeded) {
  generation_.stream = [](grpc::ServerContext* context, FakeGeneration::Writer*) {
    while (!context->IsCancelled()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return grpc::Status::CANCELLED;
  };
  const auto response =
      client_->GenerateStream(Request("x"), nullptr, {absl::Milliseconds(50), {}});
  EXPECT_TRUE(absl::IsDeadlineExceeded(response.status())) << response.status();
}

TEST_F(ClientTest, StreamWithoutFinalMessageIsDataLoss) {
  generation_.stream = [](grpc::ServerContext*, FakeGeneration::Writer*) {
    return grpc::Status::OK;
  };
  EXPECT_TRUE(absl::IsDataLoss(client_->GenerateStream(Request("x"), nullptr).status()));
}

TEST_F(ClientTest, IgnoresCompletionIndicesOutOfReason) {
  generation_.stream = [](grpc::ServerContext*, FakeGeneration::Writer* writer) {
    writer->Write(Delta(2'000'000'000, "a", 1));
    writer->Write(Delta(-1, "a", 1));
    writer->Write(Final(0, 1));
    return grpc::Status::OK;
  };
  const auto response = client_->GenerateStream(Request("x"), nullptr);
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(response->completions.size(), 1u);
}

TEST_F(ClientTest, ConversationsAreSentAsMessages) {
  Chat chat;
  chat.messages = {{"system", "Be brief."}, {"user", "Who?"}};
  GenerateRequest request;
  request.prompt = chat;
  ASSERT_TRUE(client_->Generate(request).ok());
  const v1::ChatInput& sent = generation_.last_request.messages();
  ASSERT_EQ(sent.messages_size(), 2);
  EXPECT_EQ(sent.messages(0).role(), "system");
  EXPECT_EQ(sent.messages(1).content(), "Who?");
  EXPECT_FALSE(sent.has_add_generation_prompt());

  chat.add_generation_prompt = false;
  TokenizeRequest tokenize;
  tokenize.chat = chat;
  ASSERT_TRUE(client_->Tokenize(tokenize).ok());
  ASSERT_TRUE(generation_.last_tokenize_request.has_messages());
  EXPECT_EQ(generation_.last_tokenize_request.messages().messages_size(), 2);
  EXPECT_TRUE(generation_.last_tokenize_request.messages().has_add_generation_prompt());
  EXPECT_FALSE(generation_.last_tokenize_request.messages().add_generation_prompt());
}

TEST_F(ClientTest, TokenizesAndListsModels) {
  TokenizeRequest request;
  request.text = "ab";
  const auto tokens = client_->Tokenize(request);
  ASSERT_TRUE(tokens.ok());
  EXPECT_THAT(tokens->ids, ElementsAre('a', 'b'));
  EXPECT_FALSE(generation_.last_tokenize_request.has_add_special_tokens());
  request.add_special_tokens = false;
  request.split_special_tokens = true;
  ASSERT_TRUE(client_->Tokenize(request).ok());
  EXPECT_TRUE(generation_.last_tokenize_request.has_add_special_tokens());
  EXPECT_FALSE(generation_.last_tokenize_request.add_special_tokens());
  EXPECT_TRUE(generation_.last_tokenize_request.split_special_tokens());
  const auto models = client_->ListModels();
  ASSERT_TRUE(models.ok());
  ASSERT_EQ(models->size(), 1u);
  EXPECT_EQ(models->front().name, "small");
  EXPECT_EQ(models->front().state, "ready");
  EXPECT_EQ(models->front().bits_per_weight_linear, 0.5);
  EXPECT_EQ(models->front().weights_bytes, 1234);
  const absl::Status unloaded = client_->UnloadModel("big");
  EXPECT_TRUE(absl::IsNotFound(unloaded));
  EXPECT_EQ(unloaded.message(), "no model big");
}

TEST_F(ClientTest, SendsATokenWithItsCallsWhenItHasOne) {
  ASSERT_TRUE(client_->ListModels().ok());
  EXPECT_EQ(models_.last_authorization, "");
  ChannelOptions options;
  options.token = "a-token";
  const auto client = Client::Create(target_, options);
  ASSERT_TRUE(client.ok()) << client.status();
  ASSERT_TRUE((*client)->ListModels().ok());
  EXPECT_EQ(models_.last_authorization, "Bearer a-token");
}

TEST_F(ClientTest, CallsToThisMachineTakeNoProxy) {
  setenv("http_proxy", "http://127.0.0.1:1", /*overwrite=*/1);  // where nobody listens
  const auto client = Client::Create(absl::StrCat("ipv4:", target_));
  ASSERT_TRUE(client.ok()) << client.status();
  const absl::Status status = (*client)->ListModels().status();
  unsetenv("http_proxy");
  EXPECT_TRUE(status.ok()) << status;
}

TEST_F(ClientTest, RefusesTextThatIsNotUtf8BeforeItIsSent) {
  const auto expect = [](const absl::Status& status, const std::string& message) {
    EXPECT_EQ(status, absl::InvalidArgumentError(message));
  };
  GenerateRequest request;
  request.prompt = "na\xC3\xAFve \xFF";
  expect(client_->Generate(request).status(), "text is not UTF-8 at byte 7");
  expect(client_->GenerateStream(request, {}).status(), "text is not UTF-8 at byte 7");
  expect(client_->ScoreText({.text = "\xFF\xFE"}).status(), "text is not UTF-8 at byte 0");
  expect(client_->Tokenize({.text = "a\xE2\x82"}).status(), "text is not UTF-8 at byte 1");
  request.prompt = "fine";
  request.stop = {"fine", "\xC0\x80"};
  expect(client_->Generate(request).status(), "stop[1] is not UTF-8 at byte 0");
  request.stop.clear();
  request.prompt = Chat{.messages = {{"user", "fine"}, {"user", "n\xED\xA0\x80"}}};
  expect(client_->Generate(request).status(),
         "messages.messages[1].content is not UTF-8 at byte 1");
  request.model = "\xFF";
  expect(client_->Generate(request).status(), "model is not UTF-8 at byte 0");
  expect(client_->Detokenize("\xFF", {1}).status(), "model is not UTF-8 at byte 0");
  expect(client_->Health("\xFF").status(), "service is not UTF-8 at byte 0");
  expect(client_->GetModel("\xFF").status(), "name is not UTF-8 at byte 0");
  expect(client_->LoadModel("\xFF").status(), "name is not UTF-8 at byte 0");
  expect(client_->UnloadModel("\xFF"), "name is not UTF-8 at byte 0");
  expect(client_->MeasureOverhead("\xFF").status(), "name is not UTF-8 at byte 0");
  EXPECT_FALSE(generation_.last_request.has_max_response_bytes());
}

TEST(ClientCreateTest, KeepsTokensOffForeignPlainText) {
  ChannelOptions options;
  options.token = "a-token";
  const std::string foreign = "192.0.2.1:8001";
  EXPECT_TRUE(absl::IsInvalidArgument(Client::Create(foreign, options).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(Client::Create("127.example.com:1", options).status()));
  options.insecure_token = true;
  EXPECT_TRUE(Client::Create(foreign, options).ok());
  options.insecure_token = false;
  options.tls.emplace();
  EXPECT_TRUE(Client::Create(foreign, options).ok());
}

TEST(ClientCreateTest, RefusesATokenThatNoHeaderCanCarry) {
  for (const char* token : {"a token", "t\xC3\xB6ken", "token\n", "\x01"}) {
    ChannelOptions options;
    options.token = token;
    const absl::Status status = Client::Create("localhost:1", options).status();
    EXPECT_EQ(status,
              absl::InvalidArgumentError("expected a token of printable ASCII without spaces"));
  }
}

TEST(IsLoopbackTest, OnlyThisMachineIs) {
  std::ifstream table(TEST_DATA_DIR "/loopback_targets.txt");
  std::string line;
  int num_cases = 0;
  while (std::getline(table, line)) {
    if (line.starts_with('#')) continue;
    const std::vector<std::string> fields = absl::StrSplit(line, ' ', absl::SkipEmpty());
    ASSERT_EQ(fields.size(), 2u) << line;
    EXPECT_EQ(IsLoopback(fields[1]), fields[0] == "loopback") << line;
    ++num_cases;
  }
  EXPECT_GT(num_cases, 40);
}

TEST(ClientCreateTest, RefusesACertificateWithoutItsKey) {
  ChannelOptions options;
  options.tls.emplace().certificate = "PEM";
  EXPECT_TRUE(absl::IsInvalidArgument(Client::Create("localhost:1", options).status()));
}

TEST(ClientCreateTest, RefusesAnEmptyTarget) {
  EXPECT_TRUE(absl::IsInvalidArgument(Client::Create("").status()));
}

TEST(ClientCreateTest, UnreachableServerIsUnavailable) {
  const auto client = Client::Create("unix:/nonexistent/ultrasketch.socket");
  ASSERT_TRUE(client.ok());
  EXPECT_TRUE(absl::IsUnavailable((*client)->ListModels().status()));
}

grpc::Status WithDetails(grpc::StatusCode code, const std::string& message,
                         const std::vector<const google::protobuf::Message*>& details) {
  google::rpc::Status status;
  status.set_code(code);
  status.set_message(message);
  for (const auto* detail : details) status.add_details()->PackFrom(*detail);
  return {code, message, status.SerializeAsString()};
}

TEST(GrpcStatusTest, KeepsCodeAndMessage) {
  EXPECT_TRUE(FromGrpcStatus(grpc::Status::OK).ok());
  EXPECT_EQ(FromGrpcStatus({grpc::StatusCode::NOT_FOUND, "no such model"}),
            absl::NotFoundError("no such model"));
}

TEST(GrpcStatusTest, WritesOutFieldViolations) {
  google::rpc::BadRequest bad_request;
  auto* violation = bad_request.add_field_violations();
  violation->set_field("max_tokens");
  violation->set_description("must be at least 1");
  EXPECT_EQ(FromGrpcStatus(
                WithDetails(grpc::StatusCode::INVALID_ARGUMENT, "invalid request", {&bad_request}))
                .message(),
            "invalid request (max_tokens: must be at least 1)");
  // Not twice.
  EXPECT_EQ(FromGrpcStatus(WithDetails(grpc::StatusCode::INVALID_ARGUMENT,
                                       "max_tokens: must be at least 1", {&bad_request}))
                .message(),
            "max_tokens: must be at least 1");
}

TEST(GrpcStatusTest, ReadsRetryDelayBack) {
  google::rpc::RetryInfo retry;
  retry.mutable_retry_delay()->set_seconds(1);
  retry.mutable_retry_delay()->set_nanos(500'000'000);
  const absl::Status status = FromGrpcStatus(
      WithDetails(grpc::StatusCode::RESOURCE_EXHAUSTED, "the queue is full", {&retry}));
  EXPECT_EQ(status.message(), "the queue is full (retry after 1.5s)");
  ASSERT_TRUE(RetryDelay(status).has_value());
  EXPECT_EQ(*RetryDelay(status), absl::Milliseconds(1500));
  EXPECT_FALSE(RetryDelay(absl::UnavailableError("down")).has_value());
}

TEST(GrpcStatusTest, SurvivesDetailsThatDoNotParse) {
  const grpc::Status status(grpc::StatusCode::INTERNAL, "oh", std::string("\xff\xff\x01\x02"));
  EXPECT_EQ(FromGrpcStatus(status), absl::InternalError("oh"));
}

}  // namespace
}  // namespace ultrasketch::client
