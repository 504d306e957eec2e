// The memory of one encoding thread.
#ifndef ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_BPE_SCRATCH_H_
#define ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_BPE_SCRATCH_H_

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

#include "absl/hash/hash.h"
#include "absl/types/span.h"

#include "engine/base/strings.h"

namespace ultrasketch::tokenizer_internal {

// The encodings of recent short words. Of fixed size: a word takes the place of whichever had its
// slot.
class WordCache {
 public:
  static constexpr size_t kMaxWordBytes = 30;
  static constexpr size_t kMaxIds = 8;

  WordCache() : slots_(kNumSlots) {}

  // A slot for `word`, of 1 to kMaxWordBytes bytes. Appends its ids and returns true when they are
  // there.
  bool Find(std::string_view word, size_t* slot, std::vector<int32_t>* ids) const {
    *slot = absl::Hash<absl::string_view>()(A(word)) % kNumSlots;
    const Slot& found = slots_[*slot];
    if (found.num_bytes != word.size() ||
        std::memcmp(found.bytes.data(), word.data(), word.size()) != 0) {
      return false;
    }
    ids->insert(ids->end(), found.ids.begin(), found.ids.begin() + found.num_ids);
    return true;
  }

  // Keeps the ids of the word for which Find has just given `slot`, unless they are too many.
  void Insert(size_t slot, std::string_view word, absl::Span<const int32_t> ids) {
    if (ids.size() > kMaxIds) return;
    Slot& target = slots_[slot];
    target.num_bytes = static_cast<uint8_t>(word.size());
    target.num_ids = static_cast<uint8_t>(ids.size());
    std::copy(word.begin(), word.end(), target.bytes.begin());
    std::copy(ids.begin(), ids.end(), target.ids.begin());
  }

 private:
  static constexpr size_t kNumSlots = 1 << 14;

  struct Slot {
    uint8_t num_bytes = 0;  // 0: free
    uint8_t num_ids = 0;
    std::array<char, kMaxWordBytes> bytes;
    std::array<int32_t, kMaxIds> ids;
  };

  std::vector<Slot> slots_;
};

class BpeScratch {
 public:
  // A symbol of a long chunk, in a doubly linked list by index, and what merging it with the next
  // one would give.
  struct Node {
    int32_t id;
    int32_t previous;  // -1: none
    int32_t next;      // -1: none
    int32_t rank;      // of the merge with the next symbol; kNoMerge: none
    int32_t merged_id;
  };
  static constexpr int32_t kNoMerge = INT32_MAX;

  std::vector<int32_t> symbols;  // of the chunk at hand
  std::vector<int32_t> ranks;    // MergeFew: of the merge of each symbol with the next
  std::vector<Node> nodes;       // MergeMany
  std::vector<uint64_t> queue;   // MergeMany: rank << 32 | index of the node, a heap
  WordCache cache;
};

}  // namespace ultrasketch::tokenizer_internal

#endif  // ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_BPE_SCRATCH_H_
