#!/usr/bin/env bash
# Abseil 20220623.1-1+deb12u2 (Debian 12, libabsl-dev): deadlock detection of absl::Mutex is expected in debug builds
# alone (absl/synchronization/mutex.h). Seen: the library as packaged is built without NDEBUG and looks for deadlocks in
# every program, optimised ones too. Whenever a mutex is taken while another is held, a graph of all mutexes is asked,
# under one lock for all threads: two nested locks take several times as long as after
#   absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
# Exits with 0 when they do, else with 1. Needs g++ and apt-get of Debian 12.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get download -qq libabsl-dev=20220623.1-1+deb12u2 libabsl20220623=20220623.1-1+deb12u2 2>/dev/null
for package in *.deb; do dpkg -x "$package" root; done
cat >nested.cc <<'CPP'
#include <algorithm>
#include <chrono>
#include <cstdio>

#include "absl/synchronization/mutex.h"

double Nanoseconds() {
  constexpr int kRounds = 100'000;
  double least = 1e9;
  for (int repetition = 0; repetition < 20; ++repetition) {
    absl::Mutex outer;
    absl::Mutex inner;
    const auto begin = std::chrono::steady_clock::now();
    for (int round = 0; round < kRounds; ++round) {
      absl::MutexLock outer_lock(&outer);
      absl::MutexLock inner_lock(&inner);
    }
    const std::chrono::duration<double, std::nano> passed = std::chrono::steady_clock::now() - begin;
    least = std::min(least, passed.count() / kRounds);
  }
  return least;
}

int main() {
  const double as_packaged = Nanoseconds();
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  const double ignored = Nanoseconds();
  std::printf("two nested locks: %.0f ns, without detection %.0f ns\n", as_packaged, ignored);
  return as_packaged > 2 * ignored ? 0 : 1;
}
CPP
library=$folder/root/usr/lib/$(dpkg-architecture -qDEB_HOST_MULTIARCH 2>/dev/null || gcc -print-multiarch)
g++ -std=c++17 -O2 -DNDEBUG -I root/usr/include -L "$library" -Wl,-rpath,"$library" -Wl,-rpath-link,"$library" \
  nested.cc -o nested -labsl_synchronization
LD_LIBRARY_PATH=$library ./nested
