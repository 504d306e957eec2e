#include "engine/kv/block_pool.h"

#include "engine/base/check.h"

namespace ultrasketch {

BlockPool::BlockPool(int64_t num_blocks) : reference_counts_(static_cast<size_t>(num_blocks), 0) {
  free_.reserve(reference_counts_.size());
  for (int64_t block = num_blocks - 1; block >= 0; --block) {
    free_.push_back(static_cast<BlockId>(block));
  }
}

bool BlockPool::Allocate(int64_t count, std::vector<BlockId>& blocks) {
  US_CHECK(count >= 0);
  if (count > num_free()) return false;
  for (int64_t i = 0; i < count; ++i) {
    const BlockId block = free_.back();
    free_.pop_back();
    reference_counts_[static_cast<size_t>(block)] = 1;
    blocks.push_back(block);
  }
  return true;
}

void BlockPool::Share(BlockId block) {
  US_CHECK(reference_count(block) > 0);
  ++reference_counts_[static_cast<size_t>(block)];
}

void BlockPool::Release(absl::Span<const BlockId> blocks) {
  for (const BlockId block : blocks) {
    US_CHECK(reference_count(block) > 0);
    if (--reference_counts_[static_cast<size_t>(block)] == 0) free_.push_back(block);
  }
}

int32_t BlockPool::reference_count(BlockId block) const {
  US_CHECK(block >= 0 && block < num_blocks());
  return reference_counts_[static_cast<size_t>(block)];
}

}  // namespace ultrasketch
