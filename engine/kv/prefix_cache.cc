#include "engine/kv/prefix_cache.h"

#include <algorithm>

#include "absl/hash/hash.h"

#include "engine/base/check.h"

namespace ultrasketch {

size_t PrefixCache::KeyHash::operator()(const Key& key) const {
  return absl::HashOf(key.parent, key.token_ids);
}

PrefixCache::PrefixCache(int64_t num_blocks, int64_t block_size, bool is_enabled)
    : block_size_(block_size),
      is_enabled_(is_enabled),
      pool_(num_blocks),
      nodes_(static_cast<size_t>(num_blocks), 0),
      parents_(static_cast<size_t>(is_enabled ? num_blocks : 0), 0),
      tokens_(static_cast<size_t>(is_enabled ? num_blocks * block_size : 0), 0),
      registered_(0, KeyHash{this}, KeyEqual{this}),
      released_at_(static_cast<size_t>(num_blocks), 0) {
  US_CHECK(block_size >= 1);
  if (is_enabled) registered_.reserve(static_cast<size_t>(num_blocks));
}

PrefixCache::Key PrefixCache::KeyOf(BlockId block) const {
  return {parents_[static_cast<size_t>(block)],
          absl::MakeConstSpan(tokens_).subspan(static_cast<size_t>(block * block_size_),
                                               static_cast<size_t>(block_size_))};
}

std::vector<BlockId> PrefixCache::Find(absl::Span<const int32_t> token_ids,
                                       int64_t max_blocks) const {
  std::vector<BlockId> blocks;
  const int64_t num_full = static_cast<int64_t>(token_ids.size()) / block_size_;
  uint64_t parent = 0;
  for (int64_t i = 0; i < std::min(num_full, max_blocks); ++i) {
    const auto found =
        registered_.find(Key{parent, token_ids.subspan(static_cast<size_t>(i * block_size_),
                                                       static_cast<size_t>(block_size_))});
    if (found == registered_.end()) break;
    blocks.push_back(*found);
    parent = NodeOf(*found);
  }
  return blocks;
}

void PrefixCache::Share(absl::Span<const BlockId> blocks) {
  for (const BlockId block : blocks) {
    if (pool_.reference_count(block) == 0) {
      US_CHECK(NodeOf(block) != 0);
      --num_cached_;
    }
    pool_.Share(block);
  }
}

bool PrefixCache::Allocate(int64_t count, std::vector<BlockId>& blocks) {
  const size_t num_before = blocks.size();
  if (!pool_.Allocate(count, blocks)) return false;
  for (size_t i = num_before; i < blocks.size(); ++i) {
    if (NodeOf(blocks[i]) != 0) ForgetContents(blocks[i]);
  }
  return true;
}

// Of a block that was free.
void PrefixCache::ForgetContents(BlockId block) {
  registered_.erase(registered_.find(KeyOf(block)));
  nodes_[static_cast<size_t>(block)] = 0;
  --num_cached_;
}

void PrefixCache::Release(absl::Span<const BlockId> blocks) {
  for (size_t i = blocks.size(); i-- > 0;) {
    const bool has_contents = NodeOf(blocks[i]) != 0;
    pool_.Release(blocks[i], has_contents ? BlockPool::Reuse::kLast : BlockPool::Reuse::kNext);
    if (pool_.reference_count(blocks[i]) > 0) continue;
    if (has_contents) ++num_cached_;
    uint64_t& released_at = released_at_[static_cast<size_t>(blocks[i])];
    if (released_at == 0) ++num_released_;
    released_at = num_takes_;
  }
}

std::vector<BlockId> PrefixCache::TakeUnused() {
  std::vector<BlockId> unused;
  for (BlockId block = 0; block < static_cast<BlockId>(pool_.num_blocks()); ++block) {
    uint64_t& released_at = released_at_[static_cast<size_t>(block)];
    if (released_at == 0 || released_at == num_takes_ || pool_.reference_count(block) > 0) continue;
    // Free blocks with contents stand in order of their release: the next ones to be handed out
    // are those that lose them here.
    if (NodeOf(block) != 0) ForgetContents(block);
    released_at = 0;
    --num_released_;
    unused.push_back(block);
  }
  ++num_takes_;
  return unused;
}

BlockId PrefixCache::Register(BlockId parent, absl::Span<const int32_t> token_ids, BlockId block) {
  US_CHECK(static_cast<int64_t>(token_ids.size()) == block_size_);
  US_CHECK(pool_.reference_count(block) > 0 && NodeOf(block) == 0);
  if (!is_enabled_) return block;
  const uint64_t parent_node = parent == kNoBlock ? 0 : NodeOf(parent);
  US_CHECK(parent == kNoBlock || parent_node != 0);

  const auto found = registered_.find(Key{parent_node, token_ids});
  if (found != registered_.end()) {
    const BlockId other = *found;
    Share({other});
    Release({block});
    return other;
  }
  std::copy(token_ids.begin(), token_ids.end(), tokens_.begin() + block * block_size_);
  parents_[static_cast<size_t>(block)] = parent_node;
  nodes_[static_cast<size_t>(block)] = next_node_++;
  registered_.insert(block);
  return block;
}

}  // namespace ultrasketch
