// Counts every call of every service, whoever answers it: handlers, refusals before a handler is
// reached (a message that cannot be parsed, say), and cancellations.
#ifndef ULTRASKETCH_SERVER_CALL_METRICS_H_
#define ULTRASKETCH_SERVER_CALL_METRICS_H_

#include <array>
#include <cstddef>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
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
  // linked in.
  void AddService(const std::string& full_name);

  // `name` as gRPC has it, "/package.Service/Method", or without the first slash.
  const Method& MethodOf(const std::string& name) ABSL_LOCKS_EXCLUDED(mutex_);

  prometheus::Gauge& unread_bytes() { return unread_bytes_; }

 private:
  prometheus::Family<prometheus::Counter>& calls_;
  prometheus::Family<prometheus::Gauge>& open_calls_;
  prometheus::Gauge& unread_bytes_;
  absl::Mutex mutex_;
  std::map<std::string, Method> methods_ ABSL_GUARDED_BY(mutex_);
};

// What makes a gRPC server count its calls. `metrics` outlives the server.
std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>>
CallCountingInterceptors(CallMetrics& metrics);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_CALL_METRICS_H_
