#include "client/channel.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include <arpa/inet.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/support/client_interceptor.h>
#include <netinet/in.h>

#include "engine/base/status.h"
#include "engine/base/strings.h"

namespace ultrasketch::client {
namespace {

// HOST, HOST:PORT or [HOST]:PORT, split as gRPC splits it.
bool IsLoopbackAddress(std::string_view address) {
  std::string_view host = address;
  if (address.starts_with('[')) {
    const size_t end = address.find(']');
    if (end == std::string_view::npos) return false;
    const std::string_view rest = address.substr(end + 1);
    if (!rest.empty() && rest.front() != ':') return false;
    host = address.substr(1, end - 1);
  } else if (std::count(address.begin(), address.end(), ':') == 1) {
    host = address.substr(0, address.find(':'));
  }
  const std::string name = absl::AsciiStrToLower(A(host));
  if (name == "localhost" || name == "localhost.") return true;
  // A name may begin with 127, too.
  in_addr ipv4;
  if (inet_pton(AF_INET, name.c_str(), &ipv4) == 1) {
    return ntohl(ipv4.s_addr) >> 24 == IN_LOOPBACKNET;
  }
  in6_addr ipv6;
  return inet_pton(AF_INET6, name.c_str(), &ipv6) == 1 &&
         std::memcmp(&ipv6, &in6addr_loopback, sizeof(ipv6)) == 0;
}

// Adds the token to a call. gRPC's own credentials for calls want TLS.
class TokenInterceptor final : public grpc::experimental::Interceptor {
 public:
  explicit TokenInterceptor(const std::string& authorization) : authorization_(authorization) {}

  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
    if (methods->QueryInterceptionHookPoint(
            grpc::experimental::InterceptionHookPoints::PRE_SEND_INITIAL_METADATA)) {
      methods->GetSendInitialMetadata()->emplace("authorization", authorization_);
    }
    methods->Proceed();
  }

 private:
  const std::string& authorization_;
};

class TokenInterceptorFactory final : public grpc::experimental::ClientInterceptorFactoryInterface {
 public:
  explicit TokenInterceptorFactory(const std::string& token)
      : authorization_(absl::StrCat("Bearer ", token)) {}

  grpc::experimental::Interceptor* CreateClientInterceptor(
      grpc::experimental::ClientRpcInfo*) override {
    return new TokenInterceptor(authorization_);
  }

 private:
  const std::string authorization_;
};

}  // namespace

bool IsLoopback(std::string_view target) {
  if (target.starts_with("unix:") || target.starts_with("unix-abstract:")) return true;
  for (const std::string_view scheme : {"ipv4:", "ipv6:"}) {
    if (!target.starts_with(scheme)) continue;
    // gRPC's only schemes of several addresses.
    const std::vector<absl::string_view> addresses =
        absl::StrSplit(A(target.substr(scheme.size())), ',');
    return std::all_of(addresses.begin(), addresses.end(),
                       [](absl::string_view address) { return IsLoopbackAddress(S(address)); });
  }
  // With an authority, a name server that the target names would answer.
  for (const std::string_view prefix : {"dns:///", "dns:"}) {
    if (target.starts_with(prefix)) return IsLoopbackAddress(target.substr(prefix.size()));
  }
  return IsLoopbackAddress(target);
}

absl::Status CheckToken(std::string_view token) {
  const auto is_visible = [](char c) { return c > ' ' && c <= '~'; };
  if (std::all_of(token.begin(), token.end(), is_visible)) return absl::OkStatus();
  return absl::InvalidArgumentError("expected a token of printable ASCII without spaces");
}

absl::StatusOr<std::shared_ptr<grpc::Channel>> CreateChannel(const std::string& target,
                                                             const ChannelOptions& options) {
  if (target.empty()) return absl::InvalidArgumentError("target is empty: expected HOST:PORT");
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetMaxSendMessageSize(-1);
  // A proxy named in the environment is never meant for the machine itself.
  if (IsLoopback(target)) arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  if (!options.retries) arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  if (options.own_connection) arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);

  std::shared_ptr<grpc::ChannelCredentials> credentials = grpc::InsecureChannelCredentials();
  if (options.tls.has_value()) {
    const TlsOptions& tls = *options.tls;
    if (tls.certificate.empty() != tls.key.empty()) {
      return absl::InvalidArgumentError("a client's certificate and its key come together");
    }
    credentials = grpc::SslCredentials({tls.ca, tls.key, tls.certificate});
    if (!tls.server_name.empty()) arguments.SetSslTargetNameOverride(tls.server_name);
  }
  US_RETURN_IF_ERROR(CheckToken(options.token));
  if (options.token.empty()) return grpc::CreateCustomChannel(target, credentials, arguments);

  if (!options.tls.has_value() && !IsLoopback(target) && !options.insecure_token) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the token would go to ", target,
        " in plain text: use TLS, or --insecure when something else protects the connection"));
  }
  std::vector<std::unique_ptr<grpc::experimental::ClientInterceptorFactoryInterface>> interceptors;
  interceptors.push_back(std::make_unique<TokenInterceptorFactory>(options.token));
  return grpc::experimental::CreateCustomChannelWithInterceptors(target, credentials, arguments,
                                                                 std::move(interceptors));
}

}  // namespace ultrasketch::client
