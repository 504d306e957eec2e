// A ring of stages in shared memory between producer and consumer warps: an mbarrier `full` and an
// mbarrier `empty` for each stage.
#ifndef ULTRASKETCH_ENGINE_CODECS_CUDA_PIPELINE_CUH_
#define ULTRASKETCH_ENGINE_CODECS_CUDA_PIPELINE_CUH_

#include "engine/codecs/cuda/ptx/mbarrier.cuh"

namespace ultrasketch::cuda {

// MbarrierInit for those of a ring's slots.
__device__ inline void InitRing(const MbarrierArray& full, const MbarrierArray& empty,
                                int num_slots, int full_arrivals, int empty_arrivals) {
  for (int slot = 0; slot < num_slots; ++slot) {
    MbarrierInit(full[slot], full_arrivals);
    MbarrierInit(empty[slot], empty_arrivals);
  }
}

// A place in a ring of buffers that are used one after the other, and which phase that is.
class Ring {
 public:
  __device__ explicit Ring(int num_slots) : num_slots_(num_slots) {}
  __device__ int slot() const { return slot_; }
  __device__ int parity() const { return parity_; }
  // No more uses than there are slots.
  __device__ void Advance(int uses = 1) {
    slot_ += uses;
    const bool wraps = slot_ >= num_slots_;
    slot_ -= wraps ? num_slots_ : 0;
    parity_ ^= wraps ? 1 : 0;
  }
  // Any number of uses.
  __device__ void Skip(int uses) {
    const int slot = slot_ + uses;
    slot_ = slot % num_slots_;
    parity_ ^= slot / num_slots_ % 2;
  }

 private:
  int num_slots_;
  int slot_ = 0;
  int parity_ = 0;
};

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_CUDA_PIPELINE_CUH_
