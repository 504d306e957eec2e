// Health, reflection, ports.
#include "server/server.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/strings.h"
#include "tests/server/raw_grpc.h"
#include "tests/server/test_server.h"

namespace ultrasketch {
namespace {

using ::testing::HasSubstr;

TEST(ServerTest, HealthKnowsTheServerAndItsModels) {
  TestModel second;
  second.name = "other";
  TestServer server({TestModel(), second});
  const auto channel = server.NewChannel();
  EXPECT_EQ(CheckHealth(channel, ""), "SERVING");
  EXPECT_EQ(CheckHealth(channel, "small"), "SERVING");
  EXPECT_EQ(CheckHealth(channel, "other"), "SERVING");
  EXPECT_EQ(CheckHealth(channel, "unknown"), "NOT_FOUND");
  server.server().SetServing("other", false);
  EXPECT_EQ(CheckHealth(channel, "other"), "NOT_SERVING");
  EXPECT_EQ(CheckHealth(channel, "small"), "SERVING");
  server.server().SetNotServing();
  EXPECT_EQ(CheckHealth(channel, ""), "NOT_SERVING");
  EXPECT_EQ(CheckHealth(channel, "small"), "NOT_SERVING");
}

TEST(ServerTest, ReflectionListsTheServices) {
  TestServer server;
  // ServerReflectionRequest { string list_services = 7; }
  const RawAnswer answer =
      CallRaw(server.NewChannel(), "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
              "\x3A\x01*");
  EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_THAT(answer.message, HasSubstr("ultrasketch.v1.GenerationService"));
  EXPECT_THAT(answer.message, HasSubstr("ultrasketch.v1.ModelService"));
  EXPECT_THAT(answer.message, HasSubstr("grpc.health.v1.Health"));
}

TEST(ServerTest, ATakenPortIsAnError) {
  TestServer server;
  ModelHost host;
  Metrics metrics;
  ServerOptions options;
  options.listen = server.server().address();
  const auto second = Server::Start(options, host, metrics);
  ASSERT_FALSE(second.ok());
  EXPECT_THAT(S(second.status().message()), HasSubstr(server.address()));
  EXPECT_THAT(S(second.status().message()), HasSubstr("in use"));
  grpc::ClientContext context;
  v1::GenerateResponse response;
  EXPECT_TRUE(server.generation().Generate(&context, Request("still here"), &response).ok());
}

TEST(ServerTest, UnknownMethodsAreUnimplemented) {
  TestServer server;
  EXPECT_EQ(CallRaw(server.NewChannel(), "/ultrasketch.v1.GenerationService/Nothing", "")
                .status.error_code(),
            grpc::StatusCode::UNIMPLEMENTED);
}

}  // namespace
}  // namespace ultrasketch
