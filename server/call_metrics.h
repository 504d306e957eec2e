// Counts every call of every service, whoever answers it: handlers, refusals before a handler is
// reached (a message that cannot be parsed, say), and cancellations.
#ifndef ULTRASKETCH_SERVER_CALL_METRICS_H_
#define ULTRASKETCH_SERVER_CALL_METRICS_H_

#include <array>
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/node_hash_map.h"
#include <grpcpp/support/server_interceptor.h>
#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/registry.h>

namespace ultrasketch {

// `ultrasketch_calls_total{method,code}`, `ultrasketch_open_calls{method}` and
// `ultrasketch_unread_bytes`. Thread-safe.
class CallMetrics {
 public:
  static constexpr size_t kNumCodes = 17;  // OK to UNAUTHENTICATED

  struct Method {
    std::array<prometheus::Counter*, kNumCodes> calls;
    prometheus::Gauge* open = nullptr;
  };

  // `registry` owns what is counted and outlives this.
  explicit CallMetrics(prometheus::Registry& registry);

  // From now on every method of the service is there, with 0. The service's descriptor must be
  // linked in. Before MethodOf is called from any thread.
  void AddService(const std::string& full_name);

  // `name` as gRPC has it, "/package.Service/Method". Methods of no service that was added are one,
  // `other`: clients' own names never become labels.
  const Method& MethodOf(std::string_view name) const;

  prometheus::Gauge& unread_bytes() { return unread_bytes_; }

 private:
  Method NewMethod(const std::string& label);

  prometheus::Family<prometheus::Counter>& calls_;
  prometheus::Family<prometheus::Gauge>& open_calls_;
  prometheus::Gauge& unread_bytes_;
  absl::node_hash_map<std::string, Method> methods_;  // by "package.Service/Method"
  Method other_;
};

// What makes a gRPC server count its calls. `metrics` outlives the server.
std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>>
CallCountingInterceptors(CallMetrics& metrics);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_CALL_METRICS_H_
