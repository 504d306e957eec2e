// What the backends of a CUDA device that share it have in common.
#ifndef ULTRASKETCH_ENGINE_BACKENDS_CUDA_CUDA_WORKSPACE_H_
#define ULTRASKETCH_ENGINE_BACKENDS_CUDA_CUDA_WORKSPACE_H_

#include <cstdint>
#include <memory>
#include <utility>

#include "absl/status/statusor.h"

#include "engine/backends/cuda/cuda_device.h"
#include "engine/backends/workspace_arena.h"
#include "engine/base/thread_pool.h"

namespace ultrasketch::cuda {

// Threads, and memory for the step that is in progress: whose step that is, uses it alone. Steps
// end with their backend's stream, so that the next one's stream need not wait.
class CudaWorkspace final : public WorkspaceArena {
 public:
  // Errors are those of CudaDevice::Open and CudaMemory::Allocate.
  static absl::StatusOr<std::shared_ptr<CudaWorkspace>> Create(int ordinal, int num_threads);

  // Results of attention before they are transformed, and packed inputs of the output head: a step
  // works through its tokens in as many token blocks as that takes.
  const CudaMemory& rows() const { return rows_; }
  // Partial results of attention, and what sampling needs.
  const CudaMemory& partials() const { return partials_; }
  // Counters of attention's KV splits: all zeros between steps.
  const CudaMemory& finished() const { return finished_; }
  // Frequencies of no rotary embedding: floats of 0, for heads of any size.
  const CudaMemory& zeros() const { return zeros_; }
  ThreadPool& pool() { return pool_; }

 protected:
  absl::StatusOr<std::unique_ptr<DeviceBuffer>> AllocateBlock(int64_t num_bytes) override;

 private:
  CudaWorkspace(std::shared_ptr<CudaDevice> device, CudaMemory rows, CudaMemory partials,
                CudaMemory finished, CudaMemory zeros, int num_threads)
      : device_(std::move(device)),
        rows_(std::move(rows)),
        partials_(std::move(partials)),
        finished_(std::move(finished)),
        zeros_(std::move(zeros)),
        pool_(num_threads) {}

  const std::shared_ptr<CudaDevice> device_;  // for memory alone; the blocks' too
  const CudaMemory rows_;
  const CudaMemory partials_;
  const CudaMemory finished_;
  const CudaMemory zeros_;
  ThreadPool pool_;
};

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_BACKENDS_CUDA_CUDA_WORKSPACE_H_
