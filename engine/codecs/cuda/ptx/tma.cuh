// TMA: copies of boxes of a tensor from device memory to shared memory (PTX ISA,
// "cp.async.bulk.tensor"). Compute capability 9.0 and later. The maps are made on the host
// (tensor_map.h).
#ifndef ULTRASKETCH_ENGINE_CODECS_CUDA_PTX_TMA_CUH_
#define ULTRASKETCH_ENGINE_CODECS_CUDA_PTX_TMA_CUH_

#include <cuda.h>

#include <cstdint>

#include "engine/codecs/cuda/ptx/mbarrier.cuh"

namespace ultrasketch::cuda {

__device__ inline void PrefetchTensorMap(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// Begins to copy the box of `map` at column `x` and row `y` to shared memory, a multiple of 128;
// the barrier's phase gets its bytes.
__device__ inline void TmaLoad(const CUtensorMap& map, int x, int y, uint32_t shared,
                               uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%2, %3}], [%4];" ::"r"(shared),
      "l"(&map), "r"(x), "r"(y), "r"(barrier)
      : "memory");
}

// Begins to copy a box of three dimensions; the barrier's phase gets its bytes.
__device__ inline void TmaLoad(const CUtensorMap& map, int x, int y, int z, uint32_t shared,
                               uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%2, %3, %4}], [%5];" ::"r"(shared),
      "l"(&map), "r"(x), "r"(y), "r"(z), "r"(barrier)
      : "memory");
}

// Begins to copy the box from `span` and `token` on; the barrier's phase gets its bytes.
__device__ inline void TmaLoadHiLo(const CUtensorMap& map, int span, int token, uint32_t shared,
                                   uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%2, %3, %4, %5}], [%6];" ::"r"(shared),
      "l"(&map), "r"(0), "r"(0), "r"(token), "r"(span), "r"(barrier)
      : "memory");
}

// The same with an arrival, from here: the phase takes all of the box's `num_bytes` to end.
__device__ inline void TmaLoadExpectTx(const CUtensorMap& map, int x, int y, int num_bytes,
                                       void* shared, uint32_t barrier) {
  MbarrierArriveExpectTx(barrier, num_bytes);
  TmaLoad(map, x, y, SharedAddress(shared), barrier);
}

// The same to the shared memory of all blocks of the cluster whose bits `ranks` has, at this
// offset, whose barriers at this one's offset get the bytes of the box. The phase of this block's
// takes an arrival, from here, and `num_bytes` in all: those of other blocks' boxes for it too.
__device__ inline void TmaMulticastExpectTx(const CUtensorMap& map, int x, int y, int num_bytes,
                                            uint16_t ranks, void* shared, uint32_t barrier) {
  MbarrierArriveExpectTx(barrier, num_bytes);
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(SharedAddress(shared)),
      "l"(&map), "r"(x), "r"(y), "r"(barrier), "h"(ranks)
      : "memory");
}

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_CUDA_PTX_TMA_CUH_
