#include <memory>
#include <string>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/server/test_server.h"

namespace ultrasketch {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(ModelServiceTest, ListsModelsByName) {
  TestModel first;
  first.name = "b";
  TestModel second;
  second.name = "a";
  TestServer server({first, second});
  grpc::ClientContext context;
  v1::ListModelsResponse response;
  ASSERT_TRUE(server.models().ListModels(&context, {}, &response).ok());
  ASSERT_EQ(response.models_size(), 2);
  EXPECT_EQ(response.models(0).name(), "a");
  EXPECT_EQ(response.models(1).name(), "b");
}

TEST(ModelServiceTest, DescribesAModel) {
  TestServer server;
  grpc::ClientContext context;
  v1::GetModelRequest request;
  request.set_name("small");
  v1::Model model;
  ASSERT_TRUE(server.models().GetModel(&context, request, &model).ok());
  EXPECT_EQ(model.state(), v1::MODEL_STATE_READY);
  EXPECT_EQ(model.architecture(), "llama");
  EXPECT_EQ(model.codec(), "dense");
  EXPECT_EQ(model.device(), "cpu");
  EXPECT_EQ(model.num_parameters(), 1000);
  EXPECT_EQ(model.bits_per_weight_linear(), 16);
  EXPECT_EQ(model.bits_per_weight_file(), 17.5);
  EXPECT_EQ(model.max_context_tokens(), 256);
  EXPECT_EQ(model.vocab_size(), 300);
  EXPECT_EQ(model.kv_cache_type(), "fp16");
  EXPECT_EQ(model.memory().weights_bytes(), 1000);
  EXPECT_EQ(model.memory().workspace_bytes(), 30);
  EXPECT_TRUE(model.has_chat());
  EXPECT_FALSE(model.chat());
}

TEST(ModelServiceTest, SaysThatAModelTakesConversations) {
  TestModel chat;
  chat.chat_template = kTestChatTemplate;
  TestServer server({chat});
  grpc::ClientContext context;
  v1::GetModelRequest request;
  request.set_name("small");
  v1::Model model;
  ASSERT_TRUE(server.models().GetModel(&context, request, &model).ok());
  EXPECT_TRUE(model.chat());
}

TEST(ModelServiceTest, SaysWhenAModelDrains) {
  TestServer server;
  server.host().Drain(absl::InfiniteFuture());
  grpc::ClientContext context;
  v1::ListModelsResponse response;
  ASSERT_TRUE(server.models().ListModels(&context, {}, &response).ok());
  EXPECT_EQ(response.models(0).state(), v1::MODEL_STATE_DRAINING);
}

TEST(ModelServiceTest, UnknownAndUnnamedModelsAreErrors) {
  TestServer server;
  v1::GetModelRequest request;
  v1::Model model;
  {
    grpc::ClientContext context;
    const grpc::Status status = server.models().GetModel(&context, request, &model);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(DetailsOf(status).fields, ElementsAre("name"));
  }
  request.set_name("none");
  grpc::ClientContext context;
  const grpc::Status status = server.models().GetModel(&context, request, &model);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(DetailsOf(status).reason, "MODEL_NOT_FOUND");
}

TEST(ModelServiceTest, UnloadsAndLoadsAgain) {
  Metrics metrics;
  ModelHostOptions options;
  options.loader =
      [&metrics](const ModelSource& source) -> absl::StatusOr<std::shared_ptr<HostedModel>> {
    if (source.name == "broken") return absl::DataLossError("tensor 7 is missing");
    TestModel model;
    model.name = source.name;
    return HostTestModel(model, metrics);
  };
  ModelHost host(std::move(options));
  ASSERT_TRUE(host.AddSource({"small", "/models/small"}).ok());
  ASSERT_TRUE(host.AddSource({"broken", "/models/broken"}).ok());
  ServerOptions server_options;
  server_options.listen = {"127.0.0.1", 0};
  const auto server = Server::Start(server_options, host, metrics);
  ASSERT_TRUE(server.ok()) << server.status();
  const auto stub = v1::ModelService::NewStub(
      grpc::CreateChannel((*server)->address().ToString(), grpc::InsecureChannelCredentials()));
  const auto load = [&](const std::string& name, v1::Model& model) {
    grpc::ClientContext context;
    v1::LoadModelRequest request;
    request.set_name(name);
    return stub->LoadModel(&context, request, &model);
  };
  const auto unload = [&](const std::string& name) {
    grpc::ClientContext context;
    v1::UnloadModelRequest request;
    request.set_name(name);
    v1::UnloadModelResponse response;
    return stub->UnloadModel(&context, request, &response);
  };

  v1::Model model;
  ASSERT_TRUE(load("small", model).ok());
  EXPECT_EQ(model.state(), v1::MODEL_STATE_READY);
  EXPECT_EQ(model.codec(), "dense");
  ASSERT_TRUE(unload("small").ok());
  EXPECT_EQ(unload("small").error_code(), grpc::StatusCode::NOT_FOUND);
  ASSERT_TRUE(load("small", model).ok());

  EXPECT_EQ(load("broken", model).error_code(), grpc::StatusCode::DATA_LOSS);
  grpc::ClientContext context;
  v1::ListModelsResponse listed;
  ASSERT_TRUE(stub->ListModels(&context, {}, &listed).ok());
  ASSERT_EQ(listed.models_size(), 2);
  EXPECT_EQ(listed.models(0).state(), v1::MODEL_STATE_FAILED);
  EXPECT_THAT(listed.models(0).error(), HasSubstr("tensor 7 is missing"));
  EXPECT_EQ(listed.models(1).state(), v1::MODEL_STATE_READY);

  EXPECT_EQ(load("unknown", model).error_code(), grpc::StatusCode::NOT_FOUND);
  const grpc::Status unnamed = load("", model);
  EXPECT_THAT(DetailsOf(unnamed).fields, ElementsAre("name"));
  EXPECT_THAT(DetailsOf(unload("")).fields, ElementsAre("name"));
}

}  // namespace
}  // namespace ultrasketch
