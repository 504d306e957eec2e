#include "server/metrics_endpoint.h"

#include <atomic>
#include <chrono>
#include <exception>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include <prometheus/exposer.h>

#include "engine/base/status.h"

namespace ultrasketch {
namespace {

// Of civetweb, which serves for the exposer. The timeout ends connections that send nothing, or
// very slowly; the threads are how many of those it takes to keep a scrape waiting. Each thread
// comes to have a heap of its own.
std::vector<std::string> ServerOptions(const ListenAddress& resolved) {
  return {"listening_ports", resolved.ToString(), "num_threads", "4", "request_timeout_ms", "2000"};
}

}  // namespace

absl::StatusOr<std::unique_ptr<MetricsEndpoint>> MetricsEndpoint::Start(
    const ListenAddress& listen,
    std::vector<std::shared_ptr<prometheus::Collectable>> collectables) {
  US_ASSIGN_OR_RETURN(const ListenAddress resolved, ResolveListenAddress(listen));
  std::unique_ptr<MetricsEndpoint> endpoint(new MetricsEndpoint());
  try {
    endpoint->exposer_ = std::make_unique<prometheus::Exposer>(ServerOptions(resolved));
  } catch (const std::exception& error) {
    // Its message does not say why.
    US_RETURN_IF_ERROR(CheckCanListen(listen));
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", listen.ToString(), ": ", error.what()));
  }
  const std::vector<int> ports = endpoint->exposer_->GetListeningPorts();
  if (ports.empty()) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", listen.ToString()));
  }
  endpoint->address_ = {listen.host, ports.front()};
  endpoint->collectables_ = std::move(collectables);
  for (const auto& collectable : endpoint->collectables_) {
    endpoint->exposer_->RegisterCollectable(collectable);
  }
  return endpoint;
}

MetricsEndpoint::~MetricsEndpoint() {
  if (exposer_ == nullptr) return;
  // civetweb notices that it should stop every two seconds, or when a connection arrives.
  std::atomic<bool> is_stopped = false;
  std::thread waker([this, &is_stopped] {
    while (!is_stopped) {
      ConnectOnce(address_);
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  });
  exposer_.reset();
  is_stopped = true;
  waker.join();
}

}  // namespace ultrasketch
