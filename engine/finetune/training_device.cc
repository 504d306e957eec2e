#include "engine/finetune/training_device.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include <ATen/Context.h>
#include <c10/util/Exception.h>

#include "engine/base/strings.h"

#ifdef ULTRASKETCH_TORCH_CUDA
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace ultrasketch {
namespace {

constexpr std::string_view kCudaPrefix = "cuda:";

int NumCudaDevices() {
#ifdef ULTRASKETCH_TORCH_CUDA
  return c10::cuda::device_count();
#else
  return 0;
#endif
}

}  // namespace

absl::StatusOr<TrainingDevice> ChooseTrainingDevice(std::string_view device,
                                                    std::string_view precision, int local_rank) {
  TrainingDevice chosen;
  int index = -1;  // of a CUDA device
  if (device == "cuda" || (device == "auto" && NumCudaDevices() > 0)) {
    index = local_rank;
  } else if (device.substr(0, kCudaPrefix.size()) == kCudaPrefix) {
    if (!absl::SimpleAtoi(A(device.substr(kCudaPrefix.size())), &index) || index < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("device: ", Quoted(device), " is none of auto, cpu, cuda, cuda:N"));
    }
  } else if (device != "cpu" && device != "auto") {
    return absl::InvalidArgumentError(
        absl::StrCat("device: ", Quoted(device), " is none of auto, cpu, cuda, cuda:N"));
  }
  if (index >= 0) {
#ifdef ULTRASKETCH_TORCH_CUDA
    if (index >= NumCudaDevices()) {
      return absl::UnavailableError(
          absl::StrCat("there is no CUDA device ", index, " (there are ", NumCudaDevices(), ")"));
    }
    const auto number = static_cast<c10::DeviceIndex>(index);
    c10::cuda::set_device(number);
    // Graphs are captured from a stream other than the default one.
    c10::cuda::setCurrentCUDAStream(c10::cuda::getStreamFromPool(/*isHighPriority=*/false, number));
    chosen.compute.device = at::Device(at::kCUDA, number);
    chosen.description = at::cuda::getDeviceProperties(number)->name;
#else
    return absl::UnavailableError("this trainer was built with a LibTorch without CUDA");
#endif
  } else {
    chosen.description = "cpu";
  }
  if (precision == "bf16" || (precision == "auto" && index >= 0)) {
    chosen.compute.type = at::kBFloat16;
  } else if (precision == "fp32" || precision == "auto") {
    chosen.compute.type = at::kFloat;
    // As fast as a GPU multiplies floats; the products of what is rounded to signs lose nothing by
    // it that counts.
    at::globalContext().setAllowTF32CuBLAS(true);
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat("precision: ", Quoted(precision), " is none of auto, bf16, fp32"));
  }
  return chosen;
}

absl::Status TorchStatus(const std::exception& error) {
  std::string message = error.what();
  const auto* torch_error = dynamic_cast<const c10::Error*>(&error);
  if (torch_error != nullptr) message = torch_error->what_without_backtrace();
  message = message.substr(0, message.find('\n'));
  if (dynamic_cast<const c10::OutOfMemoryError*>(&error) != nullptr ||
      message.find("not enough memory") != std::string::npos) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "out of memory (", message,
        "): try --checkpoint-activations, a larger --accumulate or a smaller --batch"));
  }
  return absl::InternalError(message);
}

}  // namespace ultrasketch
