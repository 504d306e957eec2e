// The metrics that have a current value rather than events: read when somebody scrapes.
#ifndef ULTRASKETCH_SERVER_COLLECTOR_H_
#define ULTRASKETCH_SERVER_COLLECTOR_H_

#include <vector>

#include <prometheus/collectable.h>
#include <prometheus/metric_family.h>

#include "server/model_host.h"

namespace ultrasketch {

// Queues, cache, memory and size of each model, and the process. Of `ultrasketch_memory_bytes`, the
// kinds of all models on the CPU and `other` add up to the process's resident memory, unless
// weights that are mapped but were never read make the models larger than the process: then `other`
// is 0.
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
