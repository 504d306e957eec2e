#include "tests/compress/cuda/fit_devices.h"

#include "engine/compress/cpu_fit_device.h"

namespace ultrasketch {
namespace {

ThreadPool& Pool() {
  static auto* const pool = new ThreadPool(2);
  return *pool;
}

const absl::StatusOr<std::unique_ptr<FitDevice>>& Created() {
  static const auto* const device =
      new absl::StatusOr<std::unique_ptr<FitDevice>>(CreateFitDevice("cuda:0", Pool()));
  return *device;
}

}  // namespace

FitDevice* CudaFitDeviceOrNull() { return Created().ok() ? Created()->get() : nullptr; }

std::string NoCudaFitReason() { return std::string(Created().status().message()); }

FitDevice& CpuFitDevice() {
  static auto* const device = MakeCpuFitDevice(Pool()).release();
  return *device;
}

}  // namespace ultrasketch
