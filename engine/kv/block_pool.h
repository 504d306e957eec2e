// Which blocks of a paged KV cache are free, and who shares the others. Ids only: no storage.
#ifndef ULTRASKETCH_ENGINE_KV_BLOCK_POOL_H_
#define ULTRASKETCH_ENGINE_KV_BLOCK_POOL_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace ultrasketch {

using BlockId = int32_t;

// Blocks are counted by reference, so that sequences can share a prefix. Deterministic: the same
// calls give the same ids. Not thread-safe: the scheduler owns it.
class BlockPool {
 public:
  explicit BlockPool(int64_t num_blocks);

  int64_t num_blocks() const { return static_cast<int64_t>(reference_counts_.size()); }
  int64_t num_free() const { return static_cast<int64_t>(free_.size()); }
  int64_t num_used() const { return num_blocks() - num_free(); }

  // Appends `count` blocks with one reference each to `blocks` and returns true, or changes nothing
  // and returns false when fewer are free.
  bool Allocate(int64_t count, std::vector<BlockId>& blocks);

  // One more reference to a block in use.
  void Share(BlockId block);

  // Drops one reference to each of the blocks; those without any are free again.
  void Release(absl::Span<const BlockId> blocks);

  int32_t reference_count(BlockId block) const;

 private:
  std::vector<int32_t> reference_counts_;
  std::vector<BlockId> free_;  // a stack: the block freed last is the warmest
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_KV_BLOCK_POOL_H_
