// The processor time that a container may use.
#ifndef ULTRASKETCH_ENGINE_BASE_CPU_QUOTA_H_
#define ULTRASKETCH_ENGINE_BASE_CPU_QUOTA_H_

#include <optional>
#include <string>

namespace ultrasketch {

// CPUs' worth of time that control groups (version 2, or the cpu controller of version 1) grant
// this process, rounded up: the least of the limits of its group and those above it. Nothing when
// there is no limit or it cannot be read. `membership` is "/proc/self/cgroup" and `root`
// "/sys/fs/cgroup", but for tests.
std::optional<int> CpuQuota(const std::string& membership, const std::string& root);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BASE_CPU_QUOTA_H_
