// The executable with certificates, tokens and limits.
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include <grpcpp/grpcpp.h>

#include "tests/base/temporary_folder.h"
#include "tests/server/daemon_process.h"
#include "tests/server/raw_grpc.h"
#include "tests/server/test_certificates.h"
#include "tests/server/test_server.h"

namespace ultrasketch {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kSampleModel[] = "small=" SAMPLE_MODEL_DIR;

class DaemonSecurityTest : public ::testing::Test {
 protected:
  TemporaryFolder folder_;
};

TEST_F(DaemonSecurityTest, ServesTlsWithTokens) {
  const TestAuthority authority;
  const PemPair pair = authority.Issue("server");
  const std::string token = "user-token-0123456789";
  Daemon daemon({"--model", kSampleModel, "--tls-cert", folder_.Write("c.pem", pair.certificate),
                 "--tls-key", folder_.Write("k.pem", pair.key), "--token-file",
                 folder_.Write("tokens", "ci:user:" + token)});
  const std::string listening = daemon.AwaitLine("event=listening");
  EXPECT_EQ(Daemon::ValueOf(listening, "transport"), "tls");
  EXPECT_EQ(Daemon::ValueOf(listening, "tokens"), "on");
  daemon.AwaitServing();
  const auto channel =
      grpc::CreateChannel(daemon.listen(), grpc::SslCredentials({authority.certificate(), "", ""}));
  const auto stub = v1::GenerationService::NewStub(channel);
  v1::GenerateResponse response;
  grpc::ClientContext refused;
  EXPECT_EQ(stub->Generate(&refused, Request("It was", 2), &response).error_code(),
            grpc::StatusCode::UNAUTHENTICATED);
  grpc::ClientContext served;
  served.AddMetadata("authorization", "Bearer " + token);
  const grpc::Status status = stub->Generate(&served, Request("It was", 2), &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(CheckHealth(channel, ""), "SERVING");
  EXPECT_THAT(daemon.output(), Not(HasSubstr(token)));
}

TEST_F(DaemonSecurityTest, WhatCannotProtectStopsTheStart) {
  const TestAuthority authority;
  const PemPair pair = authority.Issue("server");
  const std::string certificate = folder_.Write("c.pem", pair.certificate);
  const std::string other_key = folder_.Write("k.pem", authority.Issue("other").key);
  ExpectFailure({"--model", kSampleModel, "--tls-cert", certificate, "--tls-key", other_key}, 1,
                "expected the private key of the certificate");
  ExpectFailure({"--model", kSampleModel, "--tls-cert", certificate, "--tls-key", "/nonexistent"},
                1, "/nonexistent");
  ExpectFailure({"--model", kSampleModel, "--token-file", folder_.Write("tokens", "short")}, 1,
                "line 1");
  ExpectFailure({"--model", kSampleModel, "--listen", "0.0.0.0:0", "--metrics-listen", "none"}, 2,
                "--insecure", /*pick_ports=*/false);
}

TEST_F(DaemonSecurityTest, ServesWithFewFileDescriptors) {
  Daemon daemon({"--model", kSampleModel}, /*pick_ports=*/true, /*max_open_files=*/96);
  EXPECT_NE(daemon.AwaitLine("event=connections_limited max_connections=48"), "");
  daemon.AwaitServing();
  std::vector<std::unique_ptr<RawConnection>> idle;
  const int port = std::stoi(daemon.listen().substr(daemon.listen().rfind(':') + 1));
  for (int i = 0; i < 200; ++i) idle.push_back(std::make_unique<RawConnection>(port));
  idle.clear();
  // The first attempts may come before the idle ones are gone: clients try again by themselves.
  grpc::ClientContext context;
  context.set_wait_for_ready(true);
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
  v1::GenerateResponse response;
  const grpc::Status status = daemon.stub().Generate(&context, Request("It was", 2), &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_THAT(ExchangeBytes(daemon.metrics_port(),
                            "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
              HasSubstr(R"(ultrasketch_refused_connections_total{reason="max_connections"} )"));
}

}  // namespace
}  // namespace ultrasketch
