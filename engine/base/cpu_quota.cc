#include "engine/base/cpu_quota.h"

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>

namespace ultrasketch {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMostCpus = 1 << 16;

std::optional<int> Quotient(int64_t quota, int64_t period) {
  if (quota <= 0 || period <= 0) return std::nullopt;  // version 1 says -1 for no limit
  return static_cast<int>(std::min((quota - 1) / period + 1, kMostCpus));
}

// The limit of one group. A group without a limit has "max" where the number would be.
std::optional<int> GroupQuota(const fs::path& folder, bool is_version2) {
  int64_t quota = 0;
  int64_t period = 0;
  if (is_version2) {
    std::ifstream(folder / "cpu.max") >> quota >> period;
  } else {
    std::ifstream(folder / "cpu.cfs_quota_us") >> quota;
    std::ifstream(folder / "cpu.cfs_period_us") >> period;
  }
  return Quotient(quota, period);
}

// Whether `controllers`, the names between the colons of a line of /proc/self/cgroup, has `cpu`.
bool HasCpu(const std::string& controllers) {
  return ("," + controllers + ",").find(",cpu,") != std::string::npos;
}

}  // namespace

std::optional<int> CpuQuota(const std::string& membership, const std::string& root) {
  std::optional<int> least;
  std::ifstream lines(membership);
  // "0::/a/b" for version 2, "4:cpu,cpuacct:/a/b" for version 1.
  for (std::string line; std::getline(lines, line);) {
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool is_version2 = controllers.empty();
    if (!is_version2 && !HasCpu(controllers)) continue;
    const fs::path top = is_version2 ? fs::path(root) : fs::path(root) / "cpu";
    fs::path group = fs::path(line.substr(second + 1)).lexically_normal().relative_path();
    // In a container the path can be the host's, whose upper part is not visible here: a group that
    // is not there has no limit.
    while (true) {
      if (const std::optional<int> quota = GroupQuota(top / group, is_version2)) {
        least = least.has_value() ? std::min(*least, *quota) : *quota;
      }
      if (group.empty()) break;
      group = group.parent_path();
    }
  }
  return least;
}

}  // namespace ultrasketch
