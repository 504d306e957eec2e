// What protects the server: TLS, tokens, switches and the transport's limits.
#include <chrono>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "grpc/reflection/v1/reflection.grpc.pb.h"
#include "gtest/gtest.h"
#include <grpcpp/grpcpp.h>

#include "server/token_file.h"
#include "server/transport_credentials.h"
#include "tests/base/temporary_folder.h"
#include "tests/server/raw_grpc.h"
#include "tests/server/test_certificates.h"
#include "tests/server/test_server.h"

namespace ultrasketch {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;

constexpr char kUserToken[] = "user-token-0123456789";
constexpr char kAdminToken[] = "admin-token-0123456789";

// A connection of its own.
std::shared_ptr<grpc::Channel> Connect(
    const TestServer& server, const std::shared_ptr<grpc::ChannelCredentials>& credentials) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return grpc::CreateCustomChannel(server.address(), credentials, arguments);
}

// ListModels, with this metadata.
grpc::Status List(const std::shared_ptr<grpc::Channel>& channel,
                  const std::vector<std::pair<std::string, std::string>>& metadata = {}) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
  for (const auto& [key, value] : metadata) context.AddMetadata(key, value);
  v1::ListModelsResponse response;
  return v1::ModelService::NewStub(channel)->ListModels(&context, {}, &response);
}

grpc::Status Load(const std::shared_ptr<grpc::Channel>& channel, const std::string& token) {
  grpc::ClientContext context;
  context.AddMetadata("authorization", "Bearer " + token);
  v1::LoadModelRequest request;
  request.set_name("other");
  v1::Model response;
  return v1::ModelService::NewStub(channel)->LoadModel(&context, request, &response);
}

int NumThreads() {
  std::ifstream status("/proc/self/status");
  std::string word;
  int count = 0;
  while (status >> word) {
    if (word == "Threads:") status >> count;
  }
  return count;
}

class TlsTest : public ::testing::Test {
 protected:
  // Serves with `server_pair_`; with a client_ca also asks for certificates that it signed.
  std::unique_ptr<TestServer> Serve(const std::string& client_ca = "",
                                    std::shared_ptr<TokenFile> tokens = nullptr) {
    TlsFiles files = {folder_.Write("cert.pem", server_pair_.certificate),
                      folder_.Write("key.pem", server_pair_.key), ""};
    if (!client_ca.empty()) files.client_ca = folder_.Write("ca.pem", client_ca);
    ServerOptions options;
    options.certificates = *TlsCertificates::Open(files, absl::ZeroDuration());
    options.tokens = std::move(tokens);
    return std::make_unique<TestServer>(std::vector<TestModel>{TestModel()}, options);
  }
  static std::shared_ptr<grpc::ChannelCredentials> Trusting(const TestAuthority& authority,
                                                            const PemPair& own = {}) {
    return grpc::SslCredentials({authority.certificate(), own.key, own.certificate});
  }
  void Replace(const PemPair& pair) {
    folder_.Write("cert.pem", pair.certificate);
    folder_.Write("key.pem", pair.key);
  }

  TemporaryFolder folder_;
  TestAuthority authority_;
  TestAuthority stranger_;
  PemPair server_pair_ = authority_.Issue("server");
};

TEST_F(TlsTest, ServesThoseWhoTrustItAndNoPlainText) {
  const auto server = Serve();
  EXPECT_TRUE(List(Connect(*server, Trusting(authority_))).ok());
  EXPECT_EQ(List(Connect(*server, Trusting(stranger_))).error_code(),
            grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(List(Connect(*server, grpc::InsecureChannelCredentials())).error_code(),
            grpc::StatusCode::UNAVAILABLE);
}

TEST_F(TlsTest, MutualTlsWantsACertificateOfTheRightAuthority) {
  TestAuthority clients;
  const auto server = Serve(clients.certificate());
  EXPECT_TRUE(List(Connect(*server, Trusting(authority_, clients.Issue("client")))).ok());
  EXPECT_FALSE(List(Connect(*server, Trusting(authority_))).ok());
  EXPECT_FALSE(List(Connect(*server, Trusting(authority_, stranger_.Issue("client")))).ok());
  EXPECT_FALSE(List(Connect(*server, Trusting(authority_, clients.Issue("expired", -1)))).ok());
}

TEST_F(TlsTest, NewConnectionsGetTheNewCertificateAndOldOnesGoOn) {
  const auto server = Serve();
  const auto old_connection = Connect(*server, Trusting(authority_));
  ASSERT_TRUE(List(old_connection).ok());
  Replace(stranger_.Issue("server"));
  EXPECT_TRUE(List(Connect(*server, Trusting(stranger_))).ok());
  EXPECT_FALSE(List(Connect(*server, Trusting(authority_))).ok());
  EXPECT_TRUE(List(old_connection).ok());
}

TEST_F(TlsTest, HalfAReplacementChangesNothing) {
  const auto server = Serve();
  ASSERT_TRUE(List(Connect(*server, Trusting(authority_))).ok());
  const PemPair next = stranger_.Issue("server");
  folder_.Write("cert.pem", next.certificate);
  EXPECT_TRUE(List(Connect(*server, Trusting(authority_))).ok());
  folder_.Write("key.pem", "-----BEGIN PRI");
  EXPECT_TRUE(List(Connect(*server, Trusting(authority_))).ok());
  folder_.Write("key.pem", next.key);
  EXPECT_TRUE(List(Connect(*server, Trusting(stranger_))).ok());
}

TEST_F(TlsTest, ClientAuthoritiesAreReplacedToo) {
  TestAuthority first;
  TestAuthority second;
  const auto server = Serve(first.certificate());
  EXPECT_FALSE(List(Connect(*server, Trusting(authority_, second.Issue("client")))).ok());
  folder_.Write("ca.pem", second.certificate());
  EXPECT_TRUE(List(Connect(*server, Trusting(authority_, second.Issue("client")))).ok());
  EXPECT_FALSE(List(Connect(*server, Trusting(authority_, first.Issue("client")))).ok());
}

// Over plain text and TLS.
class TokenServerTest : public TlsTest, public ::testing::WithParamInterface<bool> {
 protected:
  void SetUp() override {
    std::shared_ptr<TokenFile> tokens = *TokenFile::Open(folder_.Write(
        "tokens", absl::StrCat("ci:user:", kUserToken, "\noperator:admin:", kAdminToken, "\n")));
    if (GetParam()) {
      server_ = Serve("", std::move(tokens));
      channel_ = Connect(*server_, Trusting(authority_));
    } else {
      ServerOptions options;
      options.tokens = std::move(tokens);
      server_ = std::make_unique<TestServer>(std::vector<TestModel>{TestModel()}, options);
      channel_ = Connect(*server_, grpc::InsecureChannelCredentials());
    }
  }

  std::unique_ptr<TestServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
};

TEST_P(TokenServerTest, ATokenIsNeeded) {
  const grpc::Status missing = List(channel_);
  EXPECT_EQ(missing.error_code(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_THAT(missing.error_message(), HasSubstr("authorization: Bearer TOKEN"));
  EXPECT_EQ(List(channel_, {{"authorization", "Bearer wrong-token-0123456789"}}).error_code(),
            grpc::StatusCode::UNAUTHENTICATED);
  const grpc::Status fine =
      List(channel_, {{"authorization", absl::StrCat("Bearer ", kUserToken)}});
  EXPECT_TRUE(fine.ok()) << fine.error_message();
  EXPECT_EQ(server_->Metric(R"(ultrasketch_refused_calls_total{code="UNAUTHENTICATED"})"), 2);
}

TEST_P(TokenServerTest, StreamsNeedATokenToo) {
  const auto stub = v1::GenerationService::NewStub(channel_);
  grpc::ClientContext refused;
  EXPECT_EQ(ReadAll(*stub->GenerateStream(&refused, Request("a", 3))).status.error_code(),
            grpc::StatusCode::UNAUTHENTICATED);
  grpc::ClientContext served;
  served.AddMetadata("authorization", absl::StrCat("Bearer ", kUserToken));
  const StreamOutput output = ReadAll(*stub->GenerateStream(&served, Request("a", 3)));
  EXPECT_TRUE(output.status.ok()) << output.status.error_message();
  EXPECT_EQ(output.token_ids.at(0).size(), 3u);
}

TEST_P(TokenServerTest, AdminsAloneLoadModels) {
  const grpc::Status refused = Load(channel_, kUserToken);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_THAT(refused.error_message(), HasSubstr("admin"));
  // As far as there is something to load: the test's host has no loader.
  EXPECT_THAT(Load(channel_, kAdminToken).error_code(),
              AnyOf(grpc::StatusCode::UNIMPLEMENTED, grpc::StatusCode::NOT_FOUND));
}

TEST_P(TokenServerTest, HealthNeedsNoToken) {
  EXPECT_EQ(CheckHealth(channel_, ""), "SERVING");
  EXPECT_EQ(HealthWatch(channel_, "small").status(), "SERVING");
}

INSTANTIATE_TEST_SUITE_P(PlainTextAndTls, TokenServerTest, ::testing::Bool(),
                         [](const auto& test) { return test.param ? "Tls" : "PlainText"; });

TEST(SwitchesTest, AdminCallsCanBeOff) {
  ServerOptions options;
  options.admin_rpcs = false;
  TestServer server({TestModel()}, options);
  const auto channel = server.NewChannel();
  EXPECT_TRUE(List(channel).ok());
  const grpc::Status refused = Load(channel, "any-token");
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_THAT(refused.error_message(), HasSubstr("--admin-rpcs"));
}

TEST(SwitchesTest, ReflectionCanBeOff) {
  ServerOptions options;
  options.reflection = false;
  TestServer server({TestModel()}, options);
  const auto channel = server.NewChannel();
  for (const char* service :
       {"grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"}) {
    EXPECT_EQ(CallRaw(channel, absl::StrCat("/", service, "/ServerReflectionInfo"), "")
                  .status.error_code(),
              grpc::StatusCode::UNIMPLEMENTED);
    EXPECT_EQ(CheckHealth(channel, service), "NOT_FOUND");
  }
  EXPECT_EQ(CheckHealth(channel, "ultrasketch.v1.GenerationService"), "SERVING");
}

TEST(TransportLimitsTest, CompressedMessagesAreRefused) {
  TestServer server;
  for (const auto algorithm : {GRPC_COMPRESS_GZIP, GRPC_COMPRESS_DEFLATE}) {
    grpc::ClientContext context;
    context.set_compression_algorithm(algorithm);
    v1::GenerateResponse response;
    const grpc::Status status =
        server.generation().Generate(&context, Request(std::string(4096, 'a'), 3), &response);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::UNIMPLEMENTED);
    EXPECT_THAT(status.error_message(), HasSubstr("ompression algorithm"));
  }
  // The connection is still good.
  grpc::ClientContext context;
  v1::GenerateResponse response;
  EXPECT_TRUE(server.generation().Generate(&context, Request("a", 3), &response).ok());
}

TEST(TransportLimitsTest, MetadataUpToTheLimitIsTaken) {
  ServerOptions options;
  options.max_metadata_bytes = 32 << 10;
  TestServer server({TestModel()}, options);
  EXPECT_TRUE(List(server.NewChannel(), {{"x-large", std::string(24 << 10, 'a')}}).ok());
  const grpc::Status refused = List(server.NewChannel(), {{"x-large", std::string(40 << 10, 'a')}});
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(List(server.NewChannel()).ok());
}

TEST(TransportLimitsTest, ConnectionsOverTheLimitAreRefused) {
  ServerOptions options;
  options.max_connections = 2;
  TestServer server({TestModel()}, options);
  const auto first = server.NewChannel();
  const auto second = server.NewChannel();
  EXPECT_TRUE(List(first).ok());
  EXPECT_TRUE(List(second).ok());
  EXPECT_EQ(server.Metric("ultrasketch_connections"), 2);
  const grpc::Status refused = List(server.NewChannel());
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_GE(server.Metric(R"(ultrasketch_refused_connections_total{reason="max_connections"})"), 1);
  EXPECT_TRUE(List(first).ok());
}

TEST(TransportLimitsTest, OpenStreamsTakeNoThreads) {
  TestServer server;
  const auto channel = server.NewChannel();
  using Reflection = grpc::reflection::v1::ServerReflection;
  const auto reflection = Reflection::NewStub(channel);
  struct Stream {
    grpc::ClientContext context;
    std::unique_ptr<grpc::ClientReaderWriter<grpc::reflection::v1::ServerReflectionRequest,
                                             grpc::reflection::v1::ServerReflectionResponse>>
        stream;
  };
  std::vector<std::unique_ptr<Stream>> streams;
  std::vector<std::unique_ptr<HealthWatch>> watches;
  int num_threads_before = 0;
  for (int i = 0; i < 100; ++i) {
    // The first few may start gRPC's own threads.
    if (i == 10) num_threads_before = NumThreads();
    Stream& stream = *streams.emplace_back(std::make_unique<Stream>());
    stream.stream = reflection->ServerReflectionInfo(&stream.context);
    grpc::reflection::v1::ServerReflectionRequest request;
    request.set_list_services("");
    grpc::reflection::v1::ServerReflectionResponse response;
    ASSERT_TRUE(stream.stream->Write(request) && stream.stream->Read(&response));
    watches.push_back(std::make_unique<HealthWatch>(channel));
  }
  EXPECT_LT(NumThreads(), num_threads_before + 20);
  for (const auto& stream : streams) {
    stream->context.TryCancel();
    stream->stream->Finish();
  }
}

}  // namespace
}  // namespace ultrasketch
