// The processes of a data-parallel training, as torchrun starts them.
#ifndef ULTRASKETCH_ENGINE_FINETUNE_PROCESS_GROUP_H_
#define ULTRASKETCH_ENGINE_FINETUNE_PROCESS_GROUP_H_

#include <memory>

#include "absl/status/statusor.h"
#include <ATen/core/Tensor.h>

namespace ultrasketch {

// Not thread-safe. Every process calls the same methods in the same order.
class ProcessGroup {
 public:
  virtual ~ProcessGroup() = default;

  // Replaces `tensor`, of one shape and type everywhere and on the group's device, by the mean over
  // all processes; every process gets the same bits.
  virtual void Average(at::Tensor& tensor) = 0;
};

// What the environment says of the processes: RANK, WORLD_SIZE, LOCAL_RANK.
struct ProcessPlace {
  int rank = 0;
  int size = 1;
  int local_rank = 0;
};

// One process where WORLD_SIZE is not set; INVALID_ARGUMENT for values that make no sense.
absl::StatusOr<ProcessPlace> ReadProcessPlace();

// Meets the other processes at MASTER_ADDR:MASTER_PORT. Through NCCL for a CUDA device, gloo for
// CPUs. INVALID_ARGUMENT when the environment does not say where; UNAVAILABLE when they do not
// come; UNIMPLEMENTED when this program was built without the one that is needed.
absl::StatusOr<std::unique_ptr<ProcessGroup>> JoinProcessGroup(const ProcessPlace& place,
                                                               at::Device device);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_FINETUNE_PROCESS_GROUP_H_
