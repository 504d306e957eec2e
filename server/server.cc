#include "server/server.h"

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>

#include "engine/base/status.h"
#include "server/access_policy.h"
#include "server/connection_listener.h"
#include "server/generation_service.h"
#include "server/kserve_service.h"
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
// connection. docs/service.md promises 5 s: what is between the two is for delays on the way.
constexpr int kMinPingIntervalMs = 1'000;
// For calls that are answered at once, and may just be about to be.
constexpr absl::Duration kShortCallsGrace = absl::Milliseconds(100);
constexpr int kMaxConcurrentStreams = 1000;  // in one connection

void Configure(const ServerOptions& options, grpc::ServerBuilder& builder) {
  builder.SetMaxReceiveMessageSize(options.max_message_bytes);
  builder.SetMaxSendMessageSize(-1);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, options.max_metadata_bytes);
  // A compressed message is inflated whole before its size is looked at: a small one may become as
  // large as memory. Such calls are UNIMPLEMENTED, and what comes all the same is not inflated.
  for (const auto algorithm : {GRPC_COMPRESS_DEFLATE, GRPC_COMPRESS_GZIP}) {
    builder.SetCompressionAlgorithmSupportStatus(algorithm, false);
  }
  builder.AddChannelArgument(GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0);
  grpc::ResourceQuota quota("ultrasketch");
  quota.Resize(static_cast<size_t>(options.max_transport_bytes));
  builder.SetResourceQuota(quota);
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, kHandshakeTimeoutMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveTimeMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             kMinPingIntervalMs);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxConcurrentStreams);
  if (options.max_connection_age < absl::InfiniteDuration()) {
    // gRPC's default leaves open calls as long as they take.
    builder.AddChannelArgument(
        GRPC_ARG_MAX_CONNECTION_AGE_MS,
        static_cast<int>(absl::ToInt64Milliseconds(options.max_connection_age)));
  }
}

std::vector<std::string> ServiceNames(const ServerOptions& options) {
  std::vector<std::string> names = {v1::GenerationService::service_full_name(),
                                    v1::ModelService::service_full_name(), "grpc.health.v1.Health"};
  if (options.reflection) {
    names.emplace_back(grpc::reflection::v1::ServerReflection::service_full_name());
    names.emplace_back(grpc::reflection::v1alpha::ServerReflection::service_full_name());
  }
  if (options.kserve) names.emplace_back(inference::GRPCInferenceService::service_full_name());
  return names;
}

}  // namespace

struct Server::Impl final : ModelStateObserver {
  Impl(const ServerOptions& options, ModelHost& model_host, Metrics& metrics)
      : host(model_host),
        service_names(ServiceNames(options)),
        policy(std::make_shared<const AccessPolicy>(options.tokens, options.admin_rpcs)),
        request_log(options.request_log, policy),
        generation(host, metrics, request_log, options.long_texts, options.call_limits),
        models(host, request_log),
        kserve(host, generation),
        reflection(service_names),
        reflection_v1alpha(service_names),
        credentials(MakeServerCredentials(
            options.certificates, policy,
            [this, &metrics](std::string_view method, const absl::Status& status) {
              metrics.transport().OnRefusedCall(status.code());
              request_log.LogRefused(method, status);
            })) {}

  void OnModelState(const std::string& name, ModelState, bool is_ready) override {
    server->GetHealthCheckService()->SetServingStatus(name, is_ready);
  }
  void OnModelGone(const std::string& name) override {
    server->GetHealthCheckService()->SetServingStatus(name, false);
  }

  ModelHost& host;
  const std::vector<std::string> service_names;
  const std::shared_ptr<const AccessPolicy> policy;
  const RequestLog request_log;
  GenerationService generation;
  ModelService models;
  KserveService kserve;
  ReflectionV1 reflection;
  ReflectionV1Alpha reflection_v1alpha;
  const std::shared_ptr<grpc::ServerCredentials> credentials;
  std::unique_ptr<grpc::Server> server;  // its destruction ends what uses the above
  std::unique_ptr<ConnectionListener> listener;
};

Server::Server(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Server::~Server() {
  impl_->host.Observe(nullptr);
  Shutdown(absl::InfinitePast());
}

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerOptions& options, ModelHost& host,
                                                      Metrics& metrics) {
  auto impl = std::make_unique<Impl>(options, host, metrics);
  US_ASSIGN_OR_RETURN(
      impl->listener,
      ConnectionListener::Open(options.listen, options.max_connections, metrics.transport()));
  grpc::EnableDefaultHealthCheckService(true);
  grpc::ServerBuilder builder;
  Configure(options, builder);
  auto acceptor = builder.experimental().AddExternalConnectionAcceptor(
      grpc::ServerBuilder::experimental_type::ExternalConnectionType::FROM_FD, impl->credentials);
  builder.RegisterService(&impl->generation);
  builder.RegisterService(&impl->models);
  if (options.kserve) builder.RegisterService(&impl->kserve);
  if (options.reflection) {
    builder.RegisterService(&impl->reflection);
    builder.RegisterService(&impl->reflection_v1alpha);
  }
  for (const std::string& name : impl->service_names) metrics.calls().AddService(name);
  builder.experimental().SetInterceptorCreators(CallCountingInterceptors(metrics.calls()));
  impl->server = builder.BuildAndStart();
  if (impl->server == nullptr) return absl::InternalError("gRPC cannot start a server");
  std::unique_ptr<Server> server(new Server(std::move(impl)));
  server->SetReady(options.is_ready);
  host.Observe(server->impl_.get());
  server->impl_->listener->Start(std::move(acceptor));
  return server;
}

const ListenAddress& Server::address() const { return impl_->listener->address(); }

void Server::SetReady(bool is_ready) {
  grpc::HealthCheckServiceInterface& health = *impl_->server->GetHealthCheckService();
  health.SetServingStatus("", is_ready);
  for (const std::string& name : impl_->service_names) health.SetServingStatus(name, is_ready);
  impl_->kserve.SetReady(is_ready);
}

void Server::SetNotServing() {
  impl_->server->GetHealthCheckService()->Shutdown();
  impl_->kserve.SetReady(false);
}

void Server::Shutdown(absl::Time deadline) {
  const bool all_done = impl_->generation.AwaitNoCalls(deadline);
  impl_->listener->Stop();
  const absl::Time now = absl::Now();
  impl_->server->Shutdown(absl::ToChronoTime(all_done ? now + kShortCallsGrace : now));
}

}  // namespace ultrasketch
