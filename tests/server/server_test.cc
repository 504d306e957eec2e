// Health, reflection, ports.
#include "server/server.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "grpc/reflection/v1/reflection.grpc.pb.h"
#include "gtest/gtest.h"
#include <google/protobuf/descriptor.h>
#include <google/protobuf/descriptor.pb.h>
#include <sys/socket.h>

#include "engine/base/strings.h"
#include "server/process_stats.h"
#include "tests/server/raw_grpc.h"
#include "tests/server/test_server.h"

namespace ultrasketch {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(ServerTest, HealthKnowsTheServerAndItsModels) {
  TestModel second;
  second.name = "other";
  TestServer server({TestModel(), second});
  const auto channel = server.NewChannel();
  EXPECT_EQ(CheckHealth(channel, ""), "SERVING");
  EXPECT_EQ(CheckHealth(channel, "small"), "SERVING");
  EXPECT_EQ(CheckHealth(channel, "other"), "SERVING");
  EXPECT_EQ(CheckHealth(channel, "unknown"), "NOT_FOUND");
  absl::Notification is_unloaded;
  server.host().Unload("other", [&](const absl::Status&) { is_unloaded.Notify(); });
  is_unloaded.WaitForNotification();
  EXPECT_EQ(CheckHealth(channel, "other"), "NOT_SERVING");
  EXPECT_EQ(CheckHealth(channel, "small"), "SERVING");
  server.server().SetNotServing();
  EXPECT_EQ(CheckHealth(channel, ""), "NOT_SERVING");
  EXPECT_EQ(CheckHealth(channel, "small"), "NOT_SERVING");
}

constexpr const char* kServices[] = {"ultrasketch.v1.GenerationService",
                                     "ultrasketch.v1.ModelService",
                                     "grpc.health.v1.Health",
                                     "grpc.reflection.v1.ServerReflection",
                                     "grpc.reflection.v1alpha.ServerReflection",
                                     "inference.GRPCInferenceService"};

TEST(ServerTest, HealthKnowsTheServicesAndTheyFollowTheServer) {
  TestServer server;
  const auto channel = server.NewChannel();
  HealthWatch watch(channel, "ultrasketch.v1.GenerationService");
  EXPECT_EQ(watch.status(), "SERVING");
  for (const char* name : kServices) EXPECT_EQ(CheckHealth(channel, name), "SERVING") << name;
  server.server().SetReady(false);
  EXPECT_EQ(watch.Next(), "NOT_SERVING");
  EXPECT_EQ(CheckHealth(channel, ""), "NOT_SERVING");
  EXPECT_EQ(CheckHealth(channel, "small"), "SERVING");
  server.server().SetReady(true);
  EXPECT_EQ(watch.Next(), "SERVING");
  server.server().SetNotServing();
  EXPECT_EQ(watch.Next(), "NOT_SERVING");
  for (const char* name : kServices) EXPECT_EQ(CheckHealth(channel, name), "NOT_SERVING") << name;
}

// Both packages are the same on the wire: v1's messages read v1alpha's answers, too.
class ReflectionTest : public ::testing::TestWithParam<const char*> {
 protected:
  using Request = grpc::reflection::v1::ServerReflectionRequest;
  using Response = grpc::reflection::v1::ServerReflectionResponse;

  Response Ask(const Request& request) {
    const RawAnswer answer = CallRaw(
        channel_,
        absl::StrCat("/grpc.reflection.", GetParam(), ".ServerReflection/ServerReflectionInfo"),
        request.SerializeAsString());
    EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
    Response response;
    EXPECT_TRUE(response.ParseFromString(answer.message));
    EXPECT_EQ(response.original_request().SerializeAsString(), request.SerializeAsString());
    return response;
  }

  TestServer server_;
  const std::shared_ptr<grpc::Channel> channel_ = server_.NewChannel();
};

TEST_P(ReflectionTest, ListsTheServices) {
  Request request;
  request.set_list_services("*");
  std::vector<std::string> names;
  const Response response = Ask(request);
  for (const auto& service : response.list_services_response().service()) {
    names.push_back(service.name());
  }
  EXPECT_THAT(names, ::testing::UnorderedElementsAreArray(kServices));
}

TEST_P(ReflectionTest, DescribesEveryServiceWithAllThatItsFileImports) {
  for (const char* name : kServices) {
    Request request;
    request.set_file_containing_symbol(name);
    const Response response = Ask(request);
    const auto& files = response.file_descriptor_response().file_descriptor_proto();
    ASSERT_GT(files.size(), 0) << name;
    // As a client does it: from what was sent alone, imports first.
    google::protobuf::DescriptorPool pool;
    for (int i = files.size(); i-- > 0;) {
      google::protobuf::FileDescriptorProto file;
      ASSERT_TRUE(file.ParseFromString(files[i]));
      ASSERT_NE(pool.BuildFile(file), nullptr) << file.name();
    }
    EXPECT_NE(pool.FindServiceByName(name), nullptr) << name;
  }
}

TEST_P(ReflectionTest, FindsFilesByNameAndTypesWithoutExtensions) {
  Request request;
  request.set_file_by_filename("ultrasketch/v1/generation.proto");
  EXPECT_GT(Ask(request).file_descriptor_response().file_descriptor_proto_size(), 0);
  request.set_file_containing_symbol("ultrasketch.v1.GenerateRequest.max_tokens");
  EXPECT_GT(Ask(request).file_descriptor_response().file_descriptor_proto_size(), 0);
  request.set_all_extension_numbers_of_type("ultrasketch.v1.GenerateRequest");
  const Response extensions = Ask(request);
  EXPECT_EQ(extensions.all_extension_numbers_response().base_type_name(),
            "ultrasketch.v1.GenerateRequest");
  EXPECT_EQ(extensions.all_extension_numbers_response().extension_number_size(), 0);
}

TEST_P(ReflectionTest, WhatIsUnknownIsAnErrorAndTheStreamGoesOn) {
  Request request;
  request.set_host("somewhere");
  EXPECT_EQ(Ask(request).error_response().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  request.set_file_by_filename("none.proto");
  EXPECT_EQ(Ask(request).error_response().error_code(), grpc::StatusCode::NOT_FOUND);
  request.set_file_containing_symbol("no.Such");
  const Response unknown = Ask(request);
  EXPECT_EQ(unknown.error_response().error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_THAT(unknown.error_response().error_message(), HasSubstr("no.Such"));
  request.set_all_extension_numbers_of_type("no.Such");
  EXPECT_EQ(Ask(request).error_response().error_code(), grpc::StatusCode::NOT_FOUND);
  request.mutable_file_containing_extension()->set_containing_type("ultrasketch.v1.Usage");
  request.mutable_file_containing_extension()->set_extension_number(7);
  EXPECT_EQ(Ask(request).error_response().error_code(), grpc::StatusCode::NOT_FOUND);
}

INSTANTIATE_TEST_SUITE_P(Packages, ReflectionTest, ::testing::Values("v1", "v1alpha"),
                         [](const auto& param) { return std::string(param.param); });

TEST(ServerTest, ReflectionStreamsTakeNoThreads) {
  TestServer server;
  const auto stub = grpc::reflection::v1::ServerReflection::NewStub(server.NewChannel());
  struct OpenStream {
    grpc::ClientContext context;
    std::unique_ptr<grpc::ClientReaderWriter<grpc::reflection::v1::ServerReflectionRequest,
                                             grpc::reflection::v1::ServerReflectionResponse>>
        stream;
  };
  const auto ask = [](OpenStream& open) {
    grpc::reflection::v1::ServerReflectionRequest request;
    request.set_list_services("");
    grpc::reflection::v1::ServerReflectionResponse response;
    EXPECT_TRUE(open.stream->Write(request));
    EXPECT_TRUE(open.stream->Read(&response));
    EXPECT_TRUE(response.has_list_services_response());
  };
  constexpr int kNumStreams = 200;
  std::vector<OpenStream> streams(kNumStreams);
  const int64_t num_threads = ReadProcessStats().num_threads;
  for (OpenStream& open : streams) {
    open.stream = stub->ServerReflectionInfo(&open.context);
    ask(open);
  }
  // gRPC's own threads come and go; one for each stream would be 200 more.
  EXPECT_LT(ReadProcessStats().num_threads, num_threads + kNumStreams / 2);
  for (OpenStream& open : streams) {
    ask(open);
    open.stream->WritesDone();
    EXPECT_TRUE(open.stream->Finish().ok());
  }
}

TEST(ServerTest, AnOpenReflectionStreamIsNotWaitedFor) {
  TestServer server;
  const auto stub = grpc::reflection::v1::ServerReflection::NewStub(server.NewChannel());
  grpc::ClientContext context;
  const auto stream = stub->ServerReflectionInfo(&context);
  grpc::reflection::v1::ServerReflectionRequest request;
  request.set_list_services("");
  grpc::reflection::v1::ServerReflectionResponse response;
  ASSERT_TRUE(stream->Write(request));
  ASSERT_TRUE(stream->Read(&response));
  const absl::Time deadline = absl::Now() + absl::Minutes(5);
  server.server().Shutdown(deadline);
  EXPECT_LT(absl::Now(), deadline);
  EXPECT_FALSE(stream->Read(&response));
}

// An HTTP/2 frame of stream 0.
std::string Frame(uint8_t type, const std::string& payload) {
  std::string frame(9, '\0');
  frame[2] = static_cast<char>(payload.size());
  frame[3] = static_cast<char>(type);
  return frame + payload;
}

// The types of the frames in `bytes`.
std::vector<int> FrameTypes(const std::string& bytes) {
  std::vector<int> types;
  for (size_t at = 0; at + 9 <= bytes.size();) {
    const auto byte = [&](size_t i) {
      return static_cast<size_t>(static_cast<uint8_t>(bytes[at + i]));
    };
    types.push_back(static_cast<int>(byte(3)));
    at += 9 + (byte(0) << 16 | byte(1) << 8 | byte(2));
  }
  return types;
}

int CountOf(int type, const std::string& bytes) {
  const std::vector<int> types = FrameTypes(bytes);
  return static_cast<int>(std::count(types.begin(), types.end(), type));
}

TEST(ServerTest, PingsOfAnIdleConnectionAreAnswered) {
  constexpr int kSettings = 4;
  constexpr int kPing = 6;
  constexpr int kGoAway = 7;
  constexpr int kNumPings = 6;
  TestServer server;
  RawConnection connection(server.server().address().port);
  ASSERT_TRUE(connection.Send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + Frame(kSettings, "")));
  std::string received;
  for (int i = 0; i < kNumPings; ++i) {
    // A third of what docs/service.md promises: much closer together they would count against the
    // client, and three of those are enough to end the connection.
    absl::SleepFor(absl::Milliseconds(1600));
    ASSERT_TRUE(connection.Send(Frame(kPing, "12345678")));
    while (CountOf(kPing, received) <= i) {
      char buffer[4096];
      const ssize_t num_bytes = recv(connection.descriptor(), buffer, sizeof(buffer), 0);
      ASSERT_GT(num_bytes, 0) << "after " << i << " pings";
      received.append(buffer, static_cast<size_t>(num_bytes));
      ASSERT_THAT(FrameTypes(received), Not(Contains(kGoAway))) << "after " << i << " pings";
    }
  }
}

TEST(ServerTest, AConnectionThatIsOldTakesNoMoreCallsAndItsStreamsFinish) {
  Gate gate;
  gate.LetThrough(1);
  TestModel model;
  model.model.before_forward = gate.Hook();
  ServerOptions options;
  options.max_connection_age = absl::Seconds(1);
  TestServer server({model}, options);
  const auto channel = server.NewChannel();
  const auto stub = v1::GenerationService::NewStub(channel);
  grpc::ClientContext context;
  const auto reader = stub->GenerateStream(&context, Request("older than its connection", 20));
  v1::GenerateStreamResponse first;
  ASSERT_TRUE(reader->Read(&first));
  // The stream keeps its connection; other calls of the channel get a second.
  const auto tokenize = [&stub] {
    grpc::ClientContext short_context;
    v1::TokenizeRequest request;
    request.set_text("new");
    v1::TokenizeResponse response;
    EXPECT_TRUE(stub->Tokenize(&short_context, request, &response).ok());
  };
  tokenize();
  EXPECT_EQ(server.Metric("ultrasketch_connections"), 1);
  do {
    absl::SleepFor(absl::Milliseconds(20));
    tokenize();
  } while (server.Metric("ultrasketch_connections") != 2);
  gate.Open();
  const StreamOutput rest = ReadAll(*reader);
  EXPECT_TRUE(rest.status.ok()) << rest.status.error_message();
  EXPECT_EQ(first.delta().token_ids_size() + static_cast<int>(rest.token_ids.at(0).size()), 20);
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
