#include "server/server.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>

#include "engine/base/status.h"
#include "server/generation_service.h"
#include "server/model_service.h"
#include "server/reflection_service.h"

namespace ultrasketch {
namespace {

// A connection that does not complete HTTP/2's handshake is closed after this long.
constexpr int kHandshakeTimeoutMs = 10'000;
// A peer that does not answer a ping is gone, and with it its requests.
constexpr int kKeepaliveTimeMs = 60'000;
constexpr int kKeepaliveTimeoutMs = 20'000;
// Pings that come sooner after one another count against a client; the third such closes its
// connection. README promises 5 s: what is between the two is for delays on the way.
constexpr int kMinPingIntervalMs = 1'000;
// For calls that are answered at once, and may just be about to be.
constexpr absl::Duration kShortCallsGrace = absl::Milliseconds(100);
constexpr int kMaxConcurrentStreams = 1000;  // in one connection

void Configure(const ServerOptions& options, grpc::ServerBuilder& builder) {
  builder.SetMaxReceiveMessageSize(options.max_message_bytes);
  builder.SetMaxSendMessageSize(-1);
  // Otherwise a second server on the same port starts and takes half of the connections.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, kHandshakeTimeoutMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveTimeMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             kMinPingIntervalMs);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxConcurrentStreams);
}

std::vector<std::string> ServiceNames() {
  return {v1::GenerationService::service_full_name(), v1::ModelService::service_full_name(),
          "grpc.health.v1.Health", grpc::reflection::v1::ServerReflection::service_full_name(),
          grpc::reflection::v1alpha::ServerReflection::service_full_name()};
}

}  // namespace

struct Server::Impl final : ModelStateObserver {
  Impl(const ServerOptions& options, ModelHost& model_host, Metrics& metrics)
      : host(model_host), generation(host, metrics, options.long_texts), models(host) {}

  void OnModelState(const std::string& name, ModelState, bool is_ready) override {
    server->GetHealthCheckService()->SetServingStatus(name, is_ready);
  }
  void OnModelGone(const std::string& name) override {
    server->GetHealthCheckService()->SetServingStatus(name, false);
  }

  ModelHost& host;
  ListenAddress address;
  GenerationService generation;
  ModelService models;
  ReflectionV1 reflection{ServiceNames()};
  ReflectionV1Alpha reflection_v1alpha{ServiceNames()};
  std::unique_ptr<grpc::Server> server;  // last: its destruction ends what uses the services
};

Server::Server(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Server::~Server() {
  impl_->host.Observe(nullptr);
  Shutdown(absl::InfinitePast());
}

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerOptions& options, ModelHost& host,
                                                      Metrics& metrics) {
  auto impl = std::make_unique<Impl>(options, host, metrics);
  grpc::EnableDefaultHealthCheckService(true);
  grpc::ServerBuilder builder;
  Configure(options, builder);
  int port = 0;
  builder.AddListeningPort(options.listen.ToString(), grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&impl->generation);
  builder.RegisterService(&impl->models);
  builder.RegisterService(&impl->reflection);
  builder.RegisterService(&impl->reflection_v1alpha);
  impl->server = builder.BuildAndStart();
  if (impl->server == nullptr) {
    // gRPC does not say why.
    US_RETURN_IF_ERROR(CheckCanListen(options.listen));
    return absl::UnavailableError(absl::StrCat("cannot listen on ", options.listen.ToString()));
  }
  impl->address = {options.listen.host, port};
  std::unique_ptr<Server> server(new Server(std::move(impl)));
  server->SetReady(options.is_ready);
  host.Observe(server->impl_.get());
  return server;
}

const ListenAddress& Server::address() const { return impl_->address; }

void Server::SetReady(bool is_ready) {
  grpc::HealthCheckServiceInterface& health = *impl_->server->GetHealthCheckService();
  health.SetServingStatus("", is_ready);
  for (const std::string& name : ServiceNames()) health.SetServingStatus(name, is_ready);
}

void Server::SetNotServing() { impl_->server->GetHealthCheckService()->Shutdown(); }

void Server::Shutdown(absl::Time deadline) {
  const bool all_done = impl_->generation.AwaitNoCalls(deadline);
  const absl::Time now = absl::Now();
  impl_->server->Shutdown(absl::ToChronoTime(all_done ? now + kShortCallsGrace : now));
}

}  // namespace ultrasketch
