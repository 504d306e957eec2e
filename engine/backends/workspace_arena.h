// One block of device memory in which the backends of a device, each in its turn, have what does
// not outlast a step: as large as what the most demanding of them needs.
#ifndef ULTRASKETCH_ENGINE_BACKENDS_WORKSPACE_ARENA_H_
#define ULTRASKETCH_ENGINE_BACKENDS_WORKSPACE_ARENA_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "engine/backends/backend.h"
#include "engine/base/mutex.h"

namespace ultrasketch {

// Models are loaded while others compute, so that a block that has become too small is replaced in
// two steps: the new one is allocated as a part asks for more, and taken into use when the next
// step begins, when nobody uses the old one. So does a block shrink after its largest user has
// left. Thread-safe, but for what Part says.
class WorkspaceArena : public std::enable_shared_from_this<WorkspaceArena> {
 public:
  class Part;

  virtual ~WorkspaceArena() = default;

  // A backend's share. Parts keep the arena alive.
  std::unique_ptr<Part> Join();

 protected:
  virtual absl::StatusOr<std::unique_ptr<DeviceBuffer>> AllocateBlock(int64_t num_bytes) = 0;
  // Of memory within a block.
  virtual int64_t ResidentBytesOf(const void*, int64_t num_bytes) const { return num_bytes; }

 private:
  int64_t LargestNeed() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  mutable Mutex mutex_;
  std::vector<Part*> parts_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<DeviceBuffer> block_ ABSL_GUARDED_BY(mutex_);  // of the last step; null: none yet
  std::unique_ptr<DeviceBuffer> next_ ABSL_GUARDED_BY(mutex_);   // of the next one; null: the same
};

// Allocate may be called while another part's backend computes.
class WorkspaceArena::Part {
 public:
  ~Part();
  Part(const Part&) = delete;
  Part& operator=(const Part&) = delete;

  // See Backend::AllocateWorkspace. The result must not outlive the part.
  absl::StatusOr<std::unique_ptr<DeviceBuffer>> Allocate(int64_t num_bytes);

  // From now on the part's buffers are where their data() says. No step of another part's backend
  // may be in progress.
  void BeginStep();

 private:
  friend class WorkspaceArena;
  class Buffer;

  explicit Part(std::shared_ptr<WorkspaceArena> arena) : arena_(std::move(arena)) {}
  int64_t ResidentBytes(int64_t offset, int64_t num_bytes) const;

  const std::shared_ptr<WorkspaceArena> arena_;
  int64_t num_bytes_ = 0;    // of its buffers; guarded by arena_->mutex_
  uint8_t* base_ = nullptr;  // as of its last BeginStep
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BACKENDS_WORKSPACE_ARENA_H_
