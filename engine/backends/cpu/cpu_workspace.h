// What the backends of the CPU that share it have in common.
#ifndef ULTRASKETCH_ENGINE_BACKENDS_CPU_CPU_WORKSPACE_H_
#define ULTRASKETCH_ENGINE_BACKENDS_CPU_CPU_WORKSPACE_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "engine/backends/workspace_arena.h"
#include "engine/base/thread_pool.h"

namespace ultrasketch {

// Threads, and memory for the step that is in progress: whose step that is, uses it alone.
class CpuWorkspace final : public WorkspaceArena {
 public:
  explicit CpuWorkspace(int num_threads)
      : pool_(num_threads), scratch_(static_cast<size_t>(pool_.num_threads())) {}

  ThreadPool& pool() { return pool_; }

  // A thread's scratch of `size` floats.
  float* Scratch(int thread, int64_t size);

  // Sines and cosines of the step's positions.
  std::vector<float>& rotations() { return rotations_; }
  // [num_tokens, query_width], or prepared inputs of the head.
  std::vector<float>& attended() { return attended_; }

 protected:
  absl::StatusOr<std::unique_ptr<DeviceBuffer>> AllocateBlock(int64_t num_bytes) override;
  int64_t ResidentBytesOf(const void* data, int64_t num_bytes) const override;

 private:
  ThreadPool pool_;
  std::vector<std::vector<float>> scratch_;  // by thread
  std::vector<float> rotations_;
  std::vector<float> attended_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BACKENDS_CPU_CPU_WORKSPACE_H_
