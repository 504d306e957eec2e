#include "engine/finetune/process_group.h"

#include <chrono>
#include <cstdlib>
#include <exception>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "engine/base/status.h"

// Each declares nothing unless its USE_ macro is set.
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#ifdef USE_C10D_NCCL
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#endif

namespace ultrasketch {
namespace {

constexpr std::chrono::minutes kMeetingTimeout(10);
constexpr int kMostProcesses = 1 << 16;
constexpr int kMostPort = (1 << 16) - 1;

absl::StatusOr<int> ReadNumber(const char* name, int least, int most, int otherwise) {
  const char* text = std::getenv(name);
  if (text == nullptr) return otherwise;
  int number = 0;
  if (!absl::SimpleAtoi(text, &number) || number < least || number > most) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": expected a number from ", least, " to ",
                                                   most, ", found '", text, "'"));
  }
  return number;
}

std::string ReadText(const char* name) {
  const char* text = std::getenv(name);
  return text == nullptr ? "" : text;
}

// Where the processes meet: the first one's, or that of torchrun's agent where it keeps one.
absl::StatusOr<c10::intrusive_ptr<c10d::Store>> Meet(const ProcessPlace& place) {
  const std::string address = ReadText("MASTER_ADDR");
  if (address.empty()) {
    return absl::InvalidArgumentError("WORLD_SIZE is set, and MASTER_ADDR is not");
  }
  US_ASSIGN_OR_RETURN(const int port, ReadNumber("MASTER_PORT", 1, kMostPort, 0));
  if (port == 0) return absl::InvalidArgumentError("WORLD_SIZE is set, and MASTER_PORT is not");
  const bool of_agent = ReadText("TORCHELASTIC_USE_AGENT_STORE") == "True";
  c10d::TCPStoreOptions options;
  options.port = static_cast<uint16_t>(port);
  options.isServer = place.rank == 0 && !of_agent;
  options.numWorkers = static_cast<size_t>(place.size);
  options.waitWorkers = !of_agent;
  options.timeout = kMeetingTimeout;
  try {
    auto store = c10::make_intrusive<c10d::TCPStore>(address, options);
    return c10::intrusive_ptr<c10d::Store>(c10::make_intrusive<c10d::PrefixStore>(
        absl::StrCat("ultrasketch/", ReadText("TORCHELASTIC_RESTART_COUNT")), std::move(store)));
  } catch (const std::exception& error) {
    const std::string message = error.what();
    return absl::UnavailableError(absl::StrCat("the processes did not meet at ", address, ":", port,
                                               ": ", message.substr(0, message.find('\n'))));
  }
}

#if defined(USE_C10D_GLOO) || defined(USE_C10D_NCCL)
// Either of LibTorch's groups; their common base is another class in different versions of it.
template <typename Communicator>
class TorchGroup final : public ProcessGroup {
 public:
  TorchGroup(const ProcessPlace& place, c10::intrusive_ptr<Communicator> communicator)
      : place_(place), communicator_(std::move(communicator)) {}

  void Average(at::Tensor& tensor) override {
    const at::NoGradGuard no_gradient;
    std::vector<at::Tensor> tensors = {tensor};
    communicator_->allreduce(tensors, c10d::AllreduceOptions())->wait();
    tensor.div_(place_.size);
  }

 private:
  const ProcessPlace place_;
  const c10::intrusive_ptr<Communicator> communicator_;
};
#endif

absl::StatusOr<std::unique_ptr<ProcessGroup>> JoinCpus(const ProcessPlace& place,
                                                       c10::intrusive_ptr<c10d::Store> store) {
#ifdef USE_C10D_GLOO
  auto options = c10d::ProcessGroupGloo::Options::create();
  const std::string address = ReadText("MASTER_ADDR");
  const bool one_machine = address == "localhost" || address == "127.0.0.1" || address == "::1";
  options->devices = {one_machine ? c10d::ProcessGroupGloo::createDeviceForHostname(address)
                                  : c10d::ProcessGroupGloo::createDefaultDevice()};
  return std::make_unique<TorchGroup<c10d::ProcessGroupGloo>>(
      place, c10::make_intrusive<c10d::ProcessGroupGloo>(std::move(store), place.rank, place.size,
                                                         std::move(options)));
#else
  (void)place;
  (void)store;
  return absl::UnimplementedError(
      "several processes on CPUs: this trainer was built without gloo, whose headers its LibTorch "
      "lacks");
#endif
}

absl::StatusOr<std::unique_ptr<ProcessGroup>> JoinGpus(const ProcessPlace& place,
                                                       c10::intrusive_ptr<c10d::Store> store) {
#ifdef USE_C10D_NCCL
  return std::make_unique<TorchGroup<c10d::ProcessGroupNCCL>>(
      place, c10::make_intrusive<c10d::ProcessGroupNCCL>(std::move(store), place.rank, place.size));
#else
  (void)place;
  (void)store;
  return absl::UnimplementedError(
      "several GPUs: this trainer was built without NCCL, whose header, nccl.h, was not there");
#endif
}

}  // namespace

absl::StatusOr<ProcessPlace> ReadProcessPlace() {
  ProcessPlace place;
  US_ASSIGN_OR_RETURN(place.size, ReadNumber("WORLD_SIZE", 1, kMostProcesses, 1));
  US_ASSIGN_OR_RETURN(place.rank, ReadNumber("RANK", 0, place.size - 1, 0));
  US_ASSIGN_OR_RETURN(place.local_rank, ReadNumber("LOCAL_RANK", 0, place.size - 1, 0));
  return place;
}

absl::StatusOr<std::unique_ptr<ProcessGroup>> JoinProcessGroup(const ProcessPlace& place,
                                                               at::Device device) {
  US_ASSIGN_OR_RETURN(c10::intrusive_ptr<c10d::Store> store, Meet(place));
  return device.is_cuda() ? JoinGpus(place, std::move(store)) : JoinCpus(place, std::move(store));
}

}  // namespace ultrasketch
