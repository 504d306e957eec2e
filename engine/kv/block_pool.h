// Which blocks of a paged KV cache are free, and who shares the others. Ids only: no storage.
#ifndef ULTRASKETCH_ENGINE_KV_BLOCK_POOL_H_
#define ULTRASKETCH_ENGINE_KV_BLOCK_POOL_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace ultrasketch {

using BlockId = int32_t;

// Blocks are counted by reference, so that sequences can share a prefix. Free ones stand in a
// queue. Deterministic: the same calls give the same ids. Not thread-safe: its owner is the
// scheduler. Everything takes constant time for each block.
class BlockPool {
 public:
  // Where a block that nobody uses any more stands among the free ones.
  enum class Reuse : uint8_t { kNext, kLast };

  explicit BlockPool(int64_t num_blocks);

  int64_t num_blocks() const { return static_cast<int64_t>(reference_counts_.size()); }
  int64_t num_free() const { return num_free_; }
  int64_t num_used() const { return num_blocks() - num_free(); }

  // Appends the `count` blocks that are free next, with one reference each, to `blocks` and returns
  // true, or changes nothing and returns false when fewer are free.
  bool Allocate(int64_t count, std::vector<BlockId>& blocks);

  // One more reference to a block, in use or free.
  void Share(BlockId block);

  // Drops one reference to a block; without any it is free again.
  void Release(BlockId block, Reuse reuse);

  int32_t reference_count(BlockId block) const;

 private:
  struct Link {
    BlockId previous;
    BlockId next;
  };

  Link& LinkOf(BlockId block) { return links_[static_cast<size_t>(block)]; }
  void InsertAfter(BlockId previous, BlockId block);
  void Unlink(BlockId block);

  std::vector<int32_t> reference_counts_;
  // A ring of the free blocks; the entry after the last block's is its beginning and end.
  std::vector<Link> links_;
  int64_t num_free_ = 0;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_KV_BLOCK_POOL_H_
