#include "server/request_log.h"

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "inference/inference_service.grpc.pb.h"
#include "nlohmann/json.hpp"
#include <grpcpp/grpcpp.h>

#include "server/log.h"
#include "tests/base/temporary_folder.h"
#include "tests/server/test_server.h"

namespace ultrasketch {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kTraceId[] = "4bf92f3577b34da6a3ce929d0e0e4736";
constexpr char kSpanId[] = "00f067aa0ba902b7";

std::string Traceparent(const std::string& version, const std::string& end = "") {
  return absl::StrCat(version, "-", kTraceId, "-", kSpanId, "-01", end);
}

TEST(IdentifyRequestTest, TakesUsableIdsAndMakesOthers) {
  for (const char* id : {"a", "req-1.2_3:x/y+z=@", "0123456789abcdef"}) {
    EXPECT_EQ(IdentifyRequest(id, std::nullopt).id, id);
  }
  const std::string made = IdentifyRequest(std::nullopt, std::nullopt).id;
  EXPECT_EQ(made.size(), 32u);
  EXPECT_NE(IdentifyRequest(std::nullopt, std::nullopt).id, made);
  for (const std::string& id :
       {std::string(), std::string("two words"), std::string("new\nline"), std::string("\"quote\""),
        std::string(129, 'a'), std::string("caf\xC3\xA9")}) {
    EXPECT_EQ(IdentifyRequest(id, std::nullopt).id.size(), 32u) << id;
  }
}

TEST(IdentifyRequestTest, ReadsTraceContext) {
  for (const std::string& header :
       {Traceparent("00"), Traceparent("01"), Traceparent("cc", "-x")}) {
    const RequestIdentity identity = IdentifyRequest(std::nullopt, header);
    EXPECT_EQ(identity.trace_id, kTraceId) << header;
    EXPECT_EQ(identity.span_id, kSpanId);
  }
  for (const std::string& header :
       {std::string(), std::string("00"), Traceparent("ff"), Traceparent("0"), Traceparent("0G"),
        Traceparent("00", "-x"), Traceparent("01", "x"),
        absl::StrCat("00-", std::string(32, '0'), "-", kSpanId, "-01"),
        absl::StrCat("00-", kTraceId, "-", std::string(16, '0'), "-01"),
        absl::StrCat("00-", std::string(32, 'A'), "-", kSpanId, "-01")}) {
    EXPECT_EQ(IdentifyRequest(std::nullopt, header).trace_id, "") << header;
  }
}

class RequestLogTest : public ::testing::Test {
 protected:
  RequestLogTest() { SetLogFormat(LogFormat::kJson); }
  ~RequestLogTest() override { SetLogFormat(LogFormat::kText); }

  void Serve(const RequestLogOptions& options, std::shared_ptr<TokenFile> tokens = nullptr) {
    ServerOptions server_options;
    server_options.request_log = options;
    server_options.tokens = std::move(tokens);
    server_ = std::make_unique<TestServer>(std::vector<TestModel>{TestModel()}, server_options);
  }

  // Generates, and returns the id in the trailing metadata.
  std::string Generate(const v1::GenerateRequest& request,
                       const std::vector<std::pair<std::string, std::string>>& metadata = {}) {
    grpc::ClientContext context;
    for (const auto& [key, value] : metadata) context.AddMetadata(key, value);
    v1::GenerateResponse response;
    server_->generation().Generate(&context, request, &response);
    const auto& trailers = context.GetServerTrailingMetadata();
    const auto id = trailers.find("x-request-id");
    return id == trailers.end() ? "" : std::string(id->second.data(), id->second.size());
  }

  // The events "request" of what was written to standard error.
  static std::vector<nlohmann::json> Requests(const std::string& log) {
    std::vector<nlohmann::json> requests;
    for (const absl::string_view line : absl::StrSplit(log, '\n', absl::SkipEmpty())) {
      auto event = nlohmann::json::parse(std::string(line), nullptr, /*allow_exceptions=*/false);
      if (event.is_object() && event["event"] == "request") requests.push_back(std::move(event));
    }
    return requests;
  }

  std::unique_ptr<TestServer> server_;
};

TEST_F(RequestLogTest, AFinishedRequestIsALineWithoutItsText) {
  Serve({.requests = LoggedRequests::kAll});
  ::testing::internal::CaptureStderr();
  const std::string id = Generate(
      Request("secret prompt", 5),
      {{"x-request-id", "mine-1"}, {"client-id", "tester"}, {"traceparent", Traceparent("00")}});
  EXPECT_EQ(id, "mine-1");
  const std::string log = ::testing::internal::GetCapturedStderr();
  const auto requests = Requests(log);
  ASSERT_EQ(requests.size(), 1u) << log;
  EXPECT_EQ(requests[0]["request_id"], "mine-1");
  EXPECT_EQ(requests[0]["trace_id"], kTraceId);
  EXPECT_EQ(requests[0]["span_id"], kSpanId);
  EXPECT_EQ(requests[0]["method"], "Generate");
  EXPECT_EQ(requests[0]["model"], "small");
  EXPECT_EQ(requests[0]["client"], "tester");
  EXPECT_EQ(requests[0]["code"], "OK");
  EXPECT_EQ(requests[0]["prompt_tokens"], 13);
  EXPECT_EQ(requests[0]["completion_tokens"], 5);
  EXPECT_GT(requests[0]["duration_seconds"], 0);
  EXPECT_GE(requests[0]["duration_seconds"], requests[0]["first_token_seconds"]);
  EXPECT_THAT(log, Not(HasSubstr("secret")));
}

TEST_F(RequestLogTest, EveryMethodHasItsLine) {
  Serve({.requests = LoggedRequests::kAll});
  ::testing::internal::CaptureStderr();
  GenerateStream(*server_, Request("a", 2));
  {
    grpc::ClientContext context;
    v1::ScoreRequest request;
    request.set_text("abc");
    v1::ScoreResponse response;
    server_->generation().Score(&context, request, &response);
  }
  {
    grpc::ClientContext context;
    v1::TokenizeRequest request;
    request.set_text("abc");
    v1::TokenizeResponse response;
    server_->generation().Tokenize(&context, request, &response);
  }
  {
    grpc::ClientContext context;
    v1::DetokenizeRequest request;
    v1::DetokenizeResponse response;
    server_->generation().Detokenize(&context, request, &response);
  }
  {
    grpc::ClientContext context;
    v1::ListModelsResponse response;
    server_->models().ListModels(&context, {}, &response);
  }
  {
    grpc::ClientContext context;
    v1::UnloadModelRequest request;
    request.set_name("nobody");
    v1::UnloadModelResponse response;
    server_->models().UnloadModel(&context, request, &response);
  }
  const auto kserve = inference::GRPCInferenceService::NewStub(server_->NewChannel());
  {
    grpc::ClientContext context;
    inference::RepositoryIndexResponse response;
    kserve->RepositoryIndex(&context, {}, &response);
  }
  {
    grpc::ClientContext context;
    inference::RepositoryModelLoadRequest request;
    request.set_model_name("nobody");
    inference::RepositoryModelLoadResponse response;
    kserve->RepositoryModelLoad(&context, request, &response);
  }
  {
    grpc::ClientContext context;
    inference::RepositoryModelUnloadRequest request;
    request.set_model_name("nobody");
    inference::RepositoryModelUnloadResponse response;
    kserve->RepositoryModelUnload(&context, request, &response);
  }
  const auto requests = Requests(::testing::internal::GetCapturedStderr());
  std::vector<std::string> methods;
  for (const auto& request : requests) methods.push_back(request["method"]);
  EXPECT_THAT(methods, ::testing::ElementsAre("GenerateStream", "Score", "Tokenize", "Detokenize",
                                              "ListModels", "UnloadModel", "RepositoryIndex",
                                              "RepositoryModelLoad", "RepositoryModelUnload"));
  EXPECT_EQ(requests.back()["model"], "nobody");
  EXPECT_EQ(requests.back()["code"], "NOT_FOUND");
}

TEST_F(RequestLogTest, ErrorsAloneAndWhatTheyQuoteStaysOut) {
  Serve({.requests = LoggedRequests::kErrors});
  ::testing::internal::CaptureStderr();
  Generate(Request("fine", 2));
  v1::GenerateRequest bad = Request("fine", 2);
  bad.set_max_tokens(0);
  Generate(bad);
  bad = Request("fine", 2);
  bad.add_stop("secret");
  bad.set_model("nobody");
  Generate(bad);
  const std::string log = ::testing::internal::GetCapturedStderr();
  const auto requests = Requests(log);
  ASSERT_EQ(requests.size(), 2u) << log;
  EXPECT_EQ(requests[0]["code"], "INVALID_ARGUMENT");
  EXPECT_EQ(requests[0]["field"], "max_tokens");
  EXPECT_FALSE(requests[0].contains("error"));
  EXPECT_EQ(requests[1]["code"], "NOT_FOUND");
  EXPECT_EQ(requests[1]["reason"], "MODEL_NOT_FOUND");
}

TEST_F(RequestLogTest, NothingIsLoggedUnlessAskedFor) {
  Serve({});
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(Generate(Request("fine", 2)).size(), 32u);
  v1::GenerateRequest bad = Request("fine", 2);
  bad.set_max_tokens(0);
  Generate(bad, {{"x-request-id", "two words"}});
  EXPECT_EQ(Requests(::testing::internal::GetCapturedStderr()).size(), 0u);
}

TEST_F(RequestLogTest, PromptsAreLoggedWhenAskedFor) {
  Serve({.requests = LoggedRequests::kAll, .prompts = true});
  ::testing::internal::CaptureStderr();
  Generate(Request("the prompt\n", 2));
  const auto requests = Requests(::testing::internal::GetCapturedStderr());
  ASSERT_EQ(requests.size(), 1u);
  EXPECT_EQ(requests[0]["prompt"], "the prompt\n");
}

TEST_F(RequestLogTest, CallersAreNamedByTheirTokens) {
  const TemporaryFolder folder;
  const std::string token = "user-token-0123456789";
  Serve({.requests = LoggedRequests::kAll},
        *TokenFile::Open(folder.Write("tokens", "ci:user:" + token)));
  ::testing::internal::CaptureStderr();
  Generate(Request("a", 2), {{"authorization", "Bearer " + token}, {"client-id", "pretender"}});
  const std::string log = ::testing::internal::GetCapturedStderr();
  const auto requests = Requests(log);
  ASSERT_EQ(requests.size(), 1u) << log;
  EXPECT_EQ(requests[0]["client"], "ci");
  EXPECT_THAT(log, Not(HasSubstr(token)));
}

}  // namespace
}  // namespace ultrasketch
