#include "engine/backends/workspace_arena.h"

#include <algorithm>
#include <utility>

#include "engine/base/check.h"
#include "engine/base/status.h"

namespace ultrasketch {
namespace {

// Of buffers within a block.
constexpr int64_t kAlignment = 256;

int64_t SizeOf(const std::unique_ptr<DeviceBuffer>& block) {
  return block != nullptr ? block->num_bytes() : 0;
}

}  // namespace

class WorkspaceArena::Part::Buffer final : public DeviceBuffer {
 public:
  Buffer(const Part& part, int64_t offset, int64_t num_bytes)
      : part_(part), offset_(offset), num_bytes_(num_bytes) {}

  void* data() override { return part_.base_ + offset_; }
  const void* data() const override { return part_.base_ + offset_; }
  int64_t num_bytes() const override { return num_bytes_; }
  int64_t resident_bytes() const override { return part_.ResidentBytes(offset_, num_bytes_); }

 private:
  const Part& part_;
  const int64_t offset_;
  const int64_t num_bytes_;
};

std::unique_ptr<WorkspaceArena::Part> WorkspaceArena::Join() {
  std::unique_ptr<Part> part(new Part(shared_from_this()));
  MutexLock lock(mutex_);
  parts_.push_back(part.get());
  return part;
}

int64_t WorkspaceArena::LargestNeed() const {
  int64_t largest = 0;
  for (const Part* part : parts_) largest = std::max(largest, part->num_bytes_);
  return largest;
}

WorkspaceArena::Part::~Part() {
  MutexLock lock(arena_->mutex_);
  std::erase(arena_->parts_, this);
}

absl::StatusOr<std::unique_ptr<DeviceBuffer>> WorkspaceArena::Part::Allocate(int64_t num_bytes) {
  US_CHECK(num_bytes >= 0);
  WorkspaceArena& arena = *arena_;
  MutexLock lock(arena.mutex_);
  const int64_t offset = (num_bytes_ + kAlignment - 1) / kAlignment * kAlignment;
  if (offset + num_bytes > std::max(SizeOf(arena.block_), SizeOf(arena.next_))) {
    US_ASSIGN_OR_RETURN(arena.next_, arena.AllocateBlock(offset + num_bytes));
  }
  num_bytes_ = offset + num_bytes;
  return std::make_unique<Buffer>(*this, offset, num_bytes);
}

void WorkspaceArena::Part::BeginStep() {
  WorkspaceArena& arena = *arena_;
  MutexLock lock(arena.mutex_);
  if (arena.next_ != nullptr) arena.block_ = std::exchange(arena.next_, nullptr);
  const int64_t needed = arena.LargestNeed();
  if (needed < SizeOf(arena.block_)) {
    auto smaller = arena.AllocateBlock(needed);
    if (smaller.ok()) arena.block_ = *std::move(smaller);
  }
  base_ = arena.block_ != nullptr ? static_cast<uint8_t*>(arena.block_->data()) : nullptr;
}

int64_t WorkspaceArena::Part::ResidentBytes(int64_t offset, int64_t num_bytes) const {
  const WorkspaceArena& arena = *arena_;
  MutexLock lock(arena.mutex_);
  int64_t resident = 0;
  for (const DeviceBuffer* block : {arena.block_.get(), arena.next_.get()}) {
    if (block == nullptr || block->num_bytes() <= offset) continue;
    resident += arena.ResidentBytesOf(static_cast<const uint8_t*>(block->data()) + offset,
                                      std::min(num_bytes, block->num_bytes() - offset));
  }
  return resident;
}

}  // namespace ultrasketch
