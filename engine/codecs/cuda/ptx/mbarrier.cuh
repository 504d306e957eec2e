// Barriers in shared memory between the warps that fill a ring of buffers and those that empty it,
// and between the blocks of a cluster, which read each other's shared memory.
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

// ---- Clusters, compute capability 9.0 and later ----

// Of the calling block in its cluster.
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
// warpgroups (warpgroup.cuh).
__device__ inline void CopyBulkToCluster(uint32_t shared, int num_bytes, uint32_t cluster_address,
                                         uint32_t cluster_barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, "
      "[%3];" ::"r"(cluster_address),
      "r"(shared), "r"(num_bytes), "r"(cluster_barrier)
      : "memory");
}

// ---- Rings ----

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

#endif  // ULTRASKETCH_ENGINE_CODECS_CUDA_PTX_MBARRIER_CUH_
