// Tells the host when files that models have mapped were cut short.
#ifndef ULTRASKETCH_SERVER_DAMAGE_WATCHER_H_
#define ULTRASKETCH_SERVER_DAMAGE_WATCHER_H_

#include <thread>

#include "server/model_host.h"

namespace ultrasketch {

// A thread that waits for damaged mappings (GuardMappings must have been called) and calls
// ModelHost::FailDamagedModels.
class DamageWatcher {
 public:
  // `host` must outlive this.
  explicit DamageWatcher(ModelHost& host);
  ~DamageWatcher();
  DamageWatcher(const DamageWatcher&) = delete;
  DamageWatcher& operator=(const DamageWatcher&) = delete;

 private:
  void Run();

  ModelHost& host_;
  const int stop_descriptor_;
  std::thread thread_;  // last: it uses everything above
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_DAMAGE_WATCHER_H_
