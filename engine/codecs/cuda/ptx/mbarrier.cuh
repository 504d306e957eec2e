// mbarrier: barriers in shared memory that count arrivals and the bytes of asynchronous copies (PTX
// ISA, "mbarrier"), from compute capability 8.0 on.
#ifndef ULTRASKETCH_ENGINE_CODECS_CUDA_PTX_MBARRIER_CUH_
#define ULTRASKETCH_ENGINE_CODECS_CUDA_PTX_MBARRIER_CUH_

#include <cstdint>

namespace ultrasketch::cuda {

// In shared memory; the functions below take its address there.
using Mbarrier = uint64_t;

__device__ inline uint32_t SharedAddress(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// A phase ends with the num_arrivals-th arrival. By one thread, before a barrier of the block.
__device__ inline void MbarrierInit(uint32_t barrier, int num_arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(num_arrivals) : "memory");
}

__device__ inline void MbarrierArrive(uint32_t barrier) {
  asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(barrier)
               : "memory");
}

// Arrives, and has the phase take `num_bytes` of asynchronous copies, stores and reductions
// besides. They may come before.
__device__ inline void MbarrierArriveExpectTx(uint32_t barrier, int num_bytes) {
  asm volatile(
      "{ .reg .b64 state; mbarrier.arrive.expect_tx.shared.b64 state, [%0], %1; }" ::"r"(barrier),
      "r"(num_bytes)
      : "memory");
}

// Arrives when all of this thread's asynchronous copies so far have.
__device__ inline void MbarrierArriveAfterCopies(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier) : "memory");
}

// Returns when the phase of this parity has ended: 0 is the first's; waiting for 1 of a new barrier
// returns at once.
__device__ inline void MbarrierWait(uint32_t barrier, int parity) {
  uint32_t done = 0;
  while (done == 0) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile(
        "{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
#else
    asm volatile(
        "{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
#endif
  }
}

// Barriers that follow each other in shared memory, by address.
class MbarrierArray {
 public:
  __device__ explicit MbarrierArray(const Mbarrier* barriers) : address_(SharedAddress(barriers)) {}
  __device__ uint32_t operator[](int index) const {
    return address_ + static_cast<uint32_t>(index * sizeof(Mbarrier));
  }

 private:
  uint32_t address_;
};

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_CUDA_PTX_MBARRIER_CUH_
