// The metrics over HTTP, for Prometheus to scrape.
#ifndef ULTRASKETCH_SERVER_METRICS_ENDPOINT_H_
#define ULTRASKETCH_SERVER_METRICS_ENDPOINT_H_

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include <prometheus/collectable.h>

#include "server/listen_address.h"

namespace ultrasketch {

class MetricsEndpoint {
 public:
  // Serves /metrics on all addresses that the host's name stands for, one scrape at a time on a
  // thread of its own. Keeps the collectables. An error says why the address cannot be listened on.
  static absl::StatusOr<std::unique_ptr<MetricsEndpoint>> Start(
      const ListenAddress& listen,
      std::vector<std::shared_ptr<prometheus::Collectable>> collectables);
  ~MetricsEndpoint();

  // With the port that was picked.
  const ListenAddress& address() const { return address_; }

 private:
  class Impl;

  MetricsEndpoint(ListenAddress address, std::unique_ptr<Impl> impl);

  const ListenAddress address_;
  const std::unique_ptr<Impl> impl_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_METRICS_ENDPOINT_H_
