#include "server/call_metrics.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include <google/protobuf/descriptor.h>

#include "engine/base/check.h"
#include "engine/base/strings.h"

namespace ultrasketch {
namespace {

using HookPoint = grpc::experimental::InterceptionHookPoints;

// Lives as long as its call.
class CountingInterceptor final : public grpc::experimental::Interceptor {
 public:
  explicit CountingInterceptor(const CallMetrics::Method& method) : method_(method) {
    method_.open->Increment();
  }
  ~CountingInterceptor() override {
    // A call that ends without a status has lost its client.
    if (!is_counted_) Count(grpc::StatusCode::CANCELLED);
    method_.open->Decrement();
  }

  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
    if (methods->QueryInterceptionHookPoint(HookPoint::PRE_SEND_STATUS)) {
      Count(methods->GetSendStatus().error_code());
    }
    methods->Proceed();
  }

 private:
  void Count(grpc::StatusCode code) {
    auto index = static_cast<size_t>(code);
    if (index >= CallMetrics::kNumCodes) index = grpc::StatusCode::UNKNOWN;
    method_.calls[index]->Increment();
    is_counted_ = true;
  }

  const CallMetrics::Method& method_;
  bool is_counted_ = false;
};

class CountingFactory final : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  explicit CountingFactory(CallMetrics& metrics) : metrics_(metrics) {}
  grpc::experimental::Interceptor* CreateServerInterceptor(
      grpc::experimental::ServerRpcInfo* info) override {
    return new CountingInterceptor(metrics_.MethodOf(info->method()));
  }

 private:
  CallMetrics& metrics_;
};

}  // namespace

CallMetrics::CallMetrics(prometheus::Registry& registry)
    : calls_(prometheus::BuildCounter()
                 .Name("ultrasketch_calls_total")
                 .Help("Calls of all services that have ended, by gRPC status code.")
                 .Register(registry)),
      open_calls_(prometheus::BuildGauge()
                      .Name("ultrasketch_open_calls")
                      .Help("Calls that are open: served, or answered and not read yet.")
                      .Register(registry)),
      unread_bytes_(prometheus::BuildGauge()
                        .Name("ultrasketch_unread_bytes")
                        .Help("Answers that clients have not read, beyond what gRPC has taken.")
                        .Register(registry)
                        .Add({})),
      other_(NewMethod("other")) {}

void CallMetrics::AddService(const std::string& full_name) {
  const google::protobuf::ServiceDescriptor* service =
      google::protobuf::DescriptorPool::generated_pool()->FindServiceByName(full_name);
  US_CHECK(service != nullptr);
  for (int i = 0; i < service->method_count(); ++i) {
    const std::string label = absl::StrCat(full_name, "/", service->method(i)->name());
    methods_.emplace(label, NewMethod(label));
  }
}

CallMetrics::Method CallMetrics::NewMethod(const std::string& label) {
  Method method;
  for (size_t i = 0; i < kNumCodes; ++i) {
    const std::string code = absl::StatusCodeToString(static_cast<absl::StatusCode>(i));
    method.calls[i] = &calls_.Add({{"method", label}, {"code", code}});
  }
  method.open = &open_calls_.Add({{"method", label}});
  return method;
}

const CallMetrics::Method& CallMetrics::MethodOf(std::string_view name) const {
  const auto found = methods_.find(absl::StripPrefix(A(name), "/"));
  return found != methods_.end() ? found->second : other_;
}

std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>>
CallCountingInterceptors(CallMetrics& metrics) {
  std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> factories;
  factories.push_back(std::make_unique<CountingFactory>(metrics));
  return factories;
}

}  // namespace ultrasketch
