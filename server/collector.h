// The metrics that have a current value rather than events: read when somebody scrapes.
#ifndef ULTRASKETCH_SERVER_COLLECTOR_H_
#define ULTRASKETCH_SERVER_COLLECTOR_H_

#include <vector>

#include <prometheus/collectable.h>
#include <prometheus/metric_family.h>

#include "server/model_host.h"

namespace ultrasketch {

// Queues, cache, memory and size of each model, and the process. `ultrasketch_memory_bytes` counts
// what is there now: of mapped weights and of buffers the pages that were used. For each device,
// what the models hold, the workspace that they share and `other` add up to what is in use: on the
// CPU the process's resident memory, on a GPU what all processes have of it.
class StateCollector final : public prometheus::Collectable {
 public:
  // `host` must outlive this.
  explicit StateCollector(const ModelHost& host) : host_(host) {}

  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  const ModelHost& host_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_COLLECTOR_H_
