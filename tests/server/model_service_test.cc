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
  EXPECT_EQ(model.memory().weights_bytes(), 1000);
  EXPECT_EQ(model.memory().workspace_bytes(), 30);
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

TEST(ModelServiceTest, LoadingAndUnloadingAreUnimplementedWithAReason) {
  TestServer server;
  grpc::ClientContext load_context;
  v1::Model model;
  grpc::Status status = server.models().LoadModel(&load_context, {}, &model);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_THAT(status.error_message(), HasSubstr("--model"));
  grpc::ClientContext unload_context;
  v1::UnloadModelResponse response;
  status = server.models().UnloadModel(&unload_context, {}, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_EQ(DetailsOf(status).reason, "FIXED_MODELS");
}

}  // namespace
}  // namespace ultrasketch
