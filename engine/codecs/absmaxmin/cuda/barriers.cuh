// Barriers in shared memory between the warps that fill a ring of buffers and those that empty it.
#ifndef ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_CUDA_BARRIERS_CUH_
#define ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_CUDA_BARRIERS_CUH_

#include <cstdint>

namespace ultrasketch::cuda {

using SharedBarrier = uint64_t;

__device__ inline uint32_t SharedAddress(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// A phase ends with the num_arrivals-th arrival. By one thread, before a barrier of the block.
__device__ inline void InitBarrier(SharedBarrier* barrier, int num_arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(SharedAddress(barrier)), "r"(num_arrivals)
               : "memory");
}

__device__ inline void Arrive(SharedBarrier* barrier) {
  asm volatile(
      "{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(SharedAddress(barrier))
      : "memory");
}

// Arrives when all of this thread's asynchronous copies so far have.
__device__ inline void ArriveAfterCopies(SharedBarrier* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(SharedAddress(barrier))
               : "memory");
}

// Returns when the phase of this parity has ended: 0 is the first's; waiting for 1 of a new barrier
// returns at once.
__device__ inline void WaitForPhase(SharedBarrier* barrier, int parity) {
  uint32_t done = 0;
  while (done == 0) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile(
        "{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
        : "=r"(done)
        : "r"(SharedAddress(barrier)), "r"(parity)
        : "memory");
#else
    asm volatile(
        "{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
        : "=r"(done)
        : "r"(SharedAddress(barrier)), "r"(parity)
        : "memory");
#endif
  }
}

// The buffer and phase of a ring's n-th use.
struct RingPosition {
  int slot;
  int parity;
};
template <int kSlots>
__device__ inline RingPosition PositionInRing(int use) {
  return {use % kSlots, use / kSlots % 2};
}

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_CUDA_BARRIERS_CUH_
