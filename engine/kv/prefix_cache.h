// Which blocks of a paged KV cache hold which tokens, so that sequences with equal beginnings share
// them instead of computing them again. Ids only: no storage.
//
// Full blocks are kept in a trie: a block is known by the block before it and by its own tokens.
// Both are compared in full on a hit: two beginnings are never taken for each other, whatever a
// client sends. That equal beginnings have equal keys and values to the bit is the model's promise
// (models/model.h).
//
// A block that no sequence uses any more keeps its contents and counts as free. Blocks without
// contents are handed out first, then the contents used longest ago are given up (LRU). Whoever
// uses a block uses those before it, and releases it before them, so that a beginning is never
// given up before its continuations.
#ifndef ULTRASKETCH_ENGINE_KV_PREFIX_CACHE_H_
#define ULTRASKETCH_ENGINE_KV_PREFIX_CACHE_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/types/span.h"

#include "engine/kv/block_pool.h"

namespace ultrasketch {

inline constexpr BlockId kNoBlock = -1;

// Deterministic: the same calls give the same ids. Not thread-safe: the scheduler owns it. Holds
// 4 * block_size + 40 bytes a block, allocated at once. With b blocks named in a call and
// `block_size` tokens in each: Find and Register take O(b * block_size), the others O(b).
class PrefixCache {
 public:
  // Unless `is_enabled`, nothing is ever found: a mere pool of blocks.
  PrefixCache(int64_t num_blocks, int64_t block_size, bool is_enabled);

  PrefixCache(const PrefixCache&) = delete;
  PrefixCache& operator=(const PrefixCache&) = delete;

  // The longest run of blocks, at most `max_blocks`, that hold the first tokens of `token_ids`.
  // They may be free: Share them before the next Allocate.
  std::vector<BlockId> Find(absl::Span<const int32_t> token_ids, int64_t max_blocks) const;

  // One more reference to each block.
  void Share(absl::Span<const BlockId> blocks);

  // Appends `count` blocks without contents, with one reference each, to `blocks` and returns true,
  // or changes nothing and returns false when fewer are free.
  bool Allocate(int64_t count, std::vector<BlockId>& blocks);

  // Drops one reference to each of a sequence's blocks, which are in order of their positions.
  void Release(absl::Span<const BlockId> blocks);

  // The caller's block has been filled with the keys and values of `token_ids` [block_size], which
  // follow those of `parent`, a registered block that the caller holds too, or kNoBlock. Gives the
  // block to be used from now on: when another one has the same contents already, the caller's
  // reference moves there.
  BlockId Register(BlockId parent, absl::Span<const int32_t> token_ids, BlockId block);

  // The blocks that nobody has used since the call before, and that were used since they were
  // returned last: their contents are given up, their memory may be. In order of their ids. Takes
  // O(num_blocks).
  std::vector<BlockId> TakeUnused();
  // Whether a later TakeUnused would return something if no block were used until then.
  bool has_unused() const { return num_released_ > 0; }

  const BlockPool& pool() const { return pool_; }
  bool is_enabled() const { return is_enabled_; }
  int64_t num_cached() const { return num_cached_; }  // free blocks with contents

 private:
  // Contents: `parent` is a node, 0 before the first block.
  struct Key {
    uint64_t parent;
    absl::Span<const int32_t> token_ids;
  };
  // A block stands in the set for its contents.
  struct KeyHash {
    using is_transparent = void;
    const PrefixCache* cache;
    size_t operator()(const Key& key) const;
    size_t operator()(BlockId block) const { return (*this)(cache->KeyOf(block)); }
  };
  struct KeyEqual {
    using is_transparent = void;
    const PrefixCache* cache;
    bool operator()(const Key& a, const Key& b) const {
      return a.parent == b.parent && a.token_ids == b.token_ids;
    }
    bool operator()(BlockId a, const Key& b) const { return (*this)(cache->KeyOf(a), b); }
    bool operator()(const Key& a, BlockId b) const { return (*this)(a, cache->KeyOf(b)); }
    bool operator()(BlockId a, BlockId b) const { return a == b; }
  };

  Key KeyOf(BlockId block) const;
  uint64_t NodeOf(BlockId block) const { return nodes_[static_cast<size_t>(block)]; }
  void ForgetContents(BlockId block);

  const int64_t block_size_;
  const bool is_enabled_;
  BlockPool pool_;
  std::vector<uint64_t> nodes_;    // of each block; 0: it has no contents. Never used twice
  std::vector<uint64_t> parents_;  // the node before it
  std::vector<int32_t> tokens_;    // [num_blocks][block_size]
  absl::flat_hash_set<BlockId, KeyHash, KeyEqual> registered_;
  uint64_t next_node_ = 1;
  int64_t num_cached_ = 0;
  // Calls of TakeUnused are counted. Of each block: the count when it was freed last; 0: it has not
  // been since TakeUnused returned it.
  uint64_t num_takes_ = 1;
  std::vector<uint64_t> released_at_;
  int64_t num_released_ = 0;  // entries that are not 0
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_KV_PREFIX_CACHE_H_
