#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

#include "engine/backends/backend.h"
#include "engine/backends/cpu/cpu_backend.h"
#include "engine/base/strings.h"

namespace ultrasketch {
namespace {

bool IsCudaDevice(std::string_view device) {
  if (device == "cuda") return true;
  int32_t ordinal = 0;
  return device.substr(0, 5) == "cuda:" && absl::SimpleAtoi(A(device.substr(5)), &ordinal) &&
         ordinal >= 0;
}

}  // namespace

absl::StatusOr<std::shared_ptr<Backend>> CreateBackend(std::string_view device,
                                                       const BackendOptions& options) {
  if (device == "cpu" || device == "auto") return CreateCpuBackend(options);
  if (IsCudaDevice(device)) {
    return absl::UnavailableError(absl::StrCat(
        "device ", Quoted(device), " is not available: this build has no CUDA plug-in"));
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "device ", Quoted(device), ": expected \"auto\", \"cpu\", \"cuda\" or \"cuda:N\""));
}

}  // namespace ultrasketch
