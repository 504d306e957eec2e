// Thread block clusters: their barrier, and distributed shared memory, what the blocks of one read
// and write of each other's. Compute capability 9.0 and later.
#ifndef ULTRASKETCH_ENGINE_CODECS_CUDA_PTX_CLUSTER_CUH_
#define ULTRASKETCH_ENGINE_CODECS_CUDA_PTX_CLUSTER_CUH_

#include <cstdint>

#include "engine/codecs/cuda/ptx/mbarrier.cuh"

namespace ultrasketch::cuda {

// The calling block's rank in its cluster.
__device__ inline int ClusterRank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}

// A barrier of all threads of the cluster: what they wrote to shared memory before they arrive can
// be read after the wait. Whole warps call these, all of the cluster's equally often. A block whose
// shared memory others read ends after a barrier that follows their reads.
__device__ inline void ClusterArrive() {
  __syncwarp();
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ inline void ClusterWait() {
  __syncwarp();
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// The arrival above waits for all that the thread has under way, in device memory too. This one
// passes on only what FenceMbarrierInit was called after: barriers too, once initialized. It comes
// after the reads that `after` is made of.
__device__ inline void ClusterArriveRelaxed(int after = 0) {
  __syncwarp();
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::"r"(after) : "memory");
}
__device__ inline void FenceMbarrierInit() {
  asm volatile("fence.mbarrier_init.release.cluster; fence.acq_rel.cluster;" ::: "memory");
}
__device__ inline void ClusterSync() {
  ClusterArrive();
  ClusterWait();
}

// An address in the shared memory of this block as one in that of the block of rank `rank`.
__device__ inline uint32_t MapToRank(uint32_t shared_address, int rank) {
  uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address), "r"(rank));
  return address;
}

__device__ inline uint32_t LoadFromCluster(uint32_t cluster_address) {
  uint32_t value;
  asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(value) : "r"(cluster_address));
  return value;
}

// Writes to another block's shared memory, or this one's, whose barrier's phase gets their four
// bytes: whoever waits for it sees them. A block ends after it has waited for all that others send.
__device__ inline void StoreAsync(uint32_t cluster_address, uint32_t value,
                                  uint32_t cluster_barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(
                   cluster_address),
               "r"(value), "r"(cluster_barrier)
               : "memory");
}
__device__ inline void RedAsyncAdd(uint32_t cluster_address, uint32_t value,
                                   uint32_t cluster_barrier) {
  asm volatile(
      "red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.add.u32 "
      "[%0], %1, [%2];" ::"r"(cluster_address),
      "r"(value), "r"(cluster_barrier)
      : "memory");
}
__device__ inline void RedAsyncMax(uint32_t cluster_address, uint32_t value,
                                   uint32_t cluster_barrier) {
  asm volatile(
      "red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.max.u32 "
      "[%0], %1, [%2];" ::"r"(cluster_address),
      "r"(value), "r"(cluster_barrier)
      : "memory");
}

// Arrives at a barrier of another block, or of this one. It passes on that reads are done, which a
// copy into what was read may follow. Writes of this thread it passes on to its own block only:
// more would be a fence that waits for device memory.
__device__ inline void MbarrierArriveCluster(uint32_t cluster_barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(cluster_barrier) : "memory");
}

// Begins to copy `num_bytes`, a multiple of 16, from this block's shared memory to another's, whose
// barrier's phase gets the bytes. What others have written there is fenced before, as for
// warpgroups (ptx/wgmma.cuh).
__device__ inline void CopyBulkToCluster(uint32_t shared, int num_bytes, uint32_t cluster_address,
                                         uint32_t cluster_barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, "
      "[%3];" ::"r"(cluster_address),
      "r"(shared), "r"(num_bytes), "r"(cluster_barrier)
      : "memory");
}

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_CUDA_PTX_CLUSTER_CUH_
