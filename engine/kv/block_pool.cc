#include "engine/kv/block_pool.h"

#include "engine/base/check.h"

namespace ultrasketch {

BlockPool::BlockPool(int64_t num_blocks)
    : reference_counts_(static_cast<size_t>(num_blocks), 0),
      links_(static_cast<size_t>(num_blocks) + 1) {
  const auto ring = static_cast<BlockId>(num_blocks);
  LinkOf(ring) = {ring, ring};
  for (BlockId block = 0; block < ring; ++block) InsertAfter(LinkOf(ring).previous, block);
}

void BlockPool::InsertAfter(BlockId previous, BlockId block) {
  const BlockId next = LinkOf(previous).next;
  LinkOf(block) = {previous, next};
  LinkOf(previous).next = block;
  LinkOf(next).previous = block;
  ++num_free_;
}

void BlockPool::Unlink(BlockId block) {
  const Link link = LinkOf(block);
  LinkOf(link.previous).next = link.next;
  LinkOf(link.next).previous = link.previous;
  --num_free_;
}

bool BlockPool::Allocate(int64_t count, std::vector<BlockId>& blocks) {
  US_CHECK(count >= 0);
  if (count > num_free()) return false;
  const auto ring = static_cast<BlockId>(num_blocks());
  for (int64_t i = 0; i < count; ++i) {
    const BlockId block = LinkOf(ring).next;
    Unlink(block);
    reference_counts_[static_cast<size_t>(block)] = 1;
    blocks.push_back(block);
  }
  return true;
}

void BlockPool::Share(BlockId block) {
  if (reference_count(block) == 0) Unlink(block);
  ++reference_counts_[static_cast<size_t>(block)];
}

void BlockPool::Release(BlockId block, Reuse reuse) {
  US_CHECK(reference_count(block) > 0);
  if (--reference_counts_[static_cast<size_t>(block)] > 0) return;
  const auto ring = static_cast<BlockId>(num_blocks());
  InsertAfter(reuse == Reuse::kNext ? ring : LinkOf(ring).previous, block);
}

int32_t BlockPool::reference_count(BlockId block) const {
  US_CHECK(block >= 0 && block < num_blocks());
  return reference_counts_[static_cast<size_t>(block)];
}

}  // namespace ultrasketch
