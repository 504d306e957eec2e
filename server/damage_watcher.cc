#include "server/damage_watcher.h"

#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>

#include <sys/eventfd.h>

#include "engine/base/check.h"
#include "engine/base/mapping_guard.h"

namespace ultrasketch {

DamageWatcher::DamageWatcher(ModelHost& host)
    : host_(host), stop_descriptor_(eventfd(0, EFD_CLOEXEC)), thread_([this] { Run(); }) {
  US_CHECK(stop_descriptor_ >= 0);
}

DamageWatcher::~DamageWatcher() {
  const uint64_t one = 1;
  US_CHECK(write(stop_descriptor_, &one, sizeof(one)) == sizeof(one));
  thread_.join();
  close(stop_descriptor_);
}

void DamageWatcher::Run() {
  pollfd events[] = {{DamagedMappingsDescriptor(), POLLIN, 0}, {stop_descriptor_, POLLIN, 0}};
  while (true) {
    if (poll(events, 2, /*timeout=*/-1) < 0) {
      US_CHECK(errno == EINTR);
      continue;
    }
    if (events[1].revents != 0) return;
    uint64_t count = 0;
    if (read(events[0].fd, &count, sizeof(count)) == sizeof(count)) host_.FailDamagedModels();
  }
}

}  // namespace ultrasketch
