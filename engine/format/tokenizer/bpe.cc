#include "engine/format/tokenizer/bpe.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "absl/strings/str_cat.h"

#include "engine/base/status.h"
#include "engine/format/tokenizer/bpe_scratch.h"
#include "engine/format/tokenizer/cancellation.h"
#include "engine/format/tokenizer/utf8.h"

namespace ultrasketch::tokenizer_internal {
namespace {

// Pieces up to this size are encoded at once, longer ones cut where no merge reaches across.
constexpr size_t kMaxUncutBytes = 64;
// Chunks of more symbols are merged with a queue; below, scanning for the best merge is faster.
constexpr size_t kMaxScannedSymbols = 48;
// Scratch kept for the next text; more threads than this allocate their own.
constexpr size_t kMaxIdleScratch = 16;
// A scratch that has seen a long text is not kept: it would pin that memory.
constexpr size_t kMaxIdleNodes = 1 << 16;

}  // namespace

Bpe::Bpe() = default;
Bpe::~Bpe() = default;

const Bpe::Merge* Bpe::FindMerge(int32_t left, int32_t right) const {
  const auto found = merges_.find(PairKey(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

int32_t Bpe::CharacterId(uint32_t code_point) const {
  if (code_point < kNumSmallCodePoints) return small_character_ids_[code_point];
  const auto found = character_ids_.find(code_point);
  return found == character_ids_.end() ? -1 : found->second;
}

bool Bpe::IsJoint(uint32_t left, uint32_t right) const {
  if (left < kNumSmallCodePoints && right < kNumSmallCodePoints) {
    return small_joints_[left * kNumSmallCodePoints + right];
  }
  return joints_.contains(PairKey(left, right));
}

// One symbol for each character: its token, or the tokens of its bytes, or the unknown token. The
// order of an unknown token among byte tokens is the `tokenizers` library's: an unknown token is
// only written when the next token of a character, another unknown one, or the end is reached.
absl::Status Bpe::AppendSymbols(std::string_view chunk, const std::atomic<bool>* cancelled,
                                std::vector<int32_t>* symbols) const {
  bool unknown_pending = false;
  const auto flush_unknown = [&] {
    if (unknown_pending) symbols->push_back(*unknown_id_);
    unknown_pending = false;
  };
  size_t next_check = kSymbolsBetweenChecks;
  for (size_t position = 0; position < chunk.size();) {
    if (position >= next_check) {
      US_RETURN_IF_ERROR(CheckNotCancelled(cancelled));
      next_check += kSymbolsBetweenChecks;
    }
    const size_t begin = position;
    const int32_t id = CharacterId(NextCodePoint(chunk, &position));
    if (id >= 0) {
      flush_unknown();
      symbols->push_back(id);
      continue;
    }
    if (byte_fallback_) {
      const std::string_view bytes = chunk.substr(begin, position - begin);
      const auto byte_id = [this](char byte) { return byte_ids_[static_cast<uint8_t>(byte)]; };
      if (std::all_of(bytes.begin(), bytes.end(), [&](char b) { return byte_id(b) >= 0; })) {
        for (const char byte : bytes) symbols->push_back(byte_id(byte));
        continue;
      }
    }
    if (!unknown_token_.has_value()) continue;
    if (!unknown_id_.has_value()) {
      return absl::FailedPreconditionError(absl::StrCat("the text needs the unknown token ",
                                                        Quoted(*unknown_token_),
                                                        ", which is not in the vocabulary"));
    }
    if (!fuse_unknown_) flush_unknown();
    unknown_pending = true;
  }
  flush_unknown();
  return absl::OkStatus();
}

// Repeats the merge of lowest rank, the leftmost of them, until there is none; the symbols are few
// enough to look at all of them each time.
void Bpe::MergeFew(BpeScratch* scratch) const {
  std::vector<int32_t>& symbols = scratch->symbols;
  std::vector<int32_t>& ranks = scratch->ranks;
  const auto rank_at = [&](size_t i) {
    const Merge* merge = FindMerge(symbols[i], symbols[i + 1]);
    return merge == nullptr ? BpeScratch::kNoMerge : merge->rank;
  };
  ranks.clear();
  for (size_t i = 0; i + 1 < symbols.size(); ++i) ranks.push_back(rank_at(i));
  while (!ranks.empty()) {
    const auto best = std::min_element(ranks.begin(), ranks.end());
    if (*best == BpeScratch::kNoMerge) return;
    const size_t i = best - ranks.begin();
    symbols[i] = FindMerge(symbols[i], symbols[i + 1])->merged_id;
    symbols.erase(symbols.begin() + i + 1);
    ranks.erase(best);
    if (i < ranks.size()) ranks[i] = rank_at(i);
    if (i > 0) ranks[i - 1] = rank_at(i - 1);
  }
}

// The same with a heap of candidates over a linked list. Entries that a merge has made stale are
// recognized when they come up, by a rank that is no longer their node's.
absl::Status Bpe::MergeMany(const std::atomic<bool>* cancelled, BpeScratch* scratch) const {
  using Node = BpeScratch::Node;
  std::vector<Node>& nodes = scratch->nodes;
  std::vector<uint64_t>& queue = scratch->queue;
  const auto set_merge = [&](Node& node) {
    const Merge* merge = node.next < 0 ? nullptr : FindMerge(node.id, nodes[node.next].id);
    node.rank = merge == nullptr ? BpeScratch::kNoMerge : merge->rank;
    node.merged_id = merge == nullptr ? -1 : merge->merged_id;
    return merge != nullptr;
  };
  const auto entry = [&](int32_t index) {
    return uint64_t{static_cast<uint32_t>(nodes[index].rank)} << 32 | static_cast<uint32_t>(index);
  };

  const auto num_nodes = static_cast<int32_t>(scratch->symbols.size());
  nodes.resize(num_nodes);
  for (int32_t i = 0; i < num_nodes; ++i) {
    const int32_t next = i + 1 < num_nodes ? i + 1 : -1;
    nodes[i] = {scratch->symbols[i], i - 1, next, BpeScratch::kNoMerge, -1};
  }
  queue.clear();
  for (int32_t i = 0; i < num_nodes; ++i) {
    if (i % kSymbolsBetweenChecks == 0) US_RETURN_IF_ERROR(CheckNotCancelled(cancelled));
    if (set_merge(nodes[i])) queue.push_back(entry(i));
  }
  std::make_heap(queue.begin(), queue.end(), std::greater<>());
  for (size_t num_popped = 0; !queue.empty(); ++num_popped) {
    if (num_popped % kSymbolsBetweenChecks == 0) US_RETURN_IF_ERROR(CheckNotCancelled(cancelled));
    const uint64_t top = queue.front();
    std::pop_heap(queue.begin(), queue.end(), std::greater<>());
    queue.pop_back();
    const auto index = static_cast<int32_t>(top & 0xffffffffu);
    Node& node = nodes[index];
    if (node.rank != static_cast<int32_t>(top >> 32)) continue;

    Node& removed = nodes[node.next];
    removed.rank = BpeScratch::kNoMerge;
    node.id = node.merged_id;
    node.next = removed.next;
    if (node.next >= 0) nodes[node.next].previous = index;
    for (const int32_t changed : {node.previous, index}) {
      if (changed < 0 || !set_merge(nodes[changed])) continue;
      queue.push_back(entry(changed));
      std::push_heap(queue.begin(), queue.end(), std::greater<>());
    }
  }
  scratch->symbols.clear();
  for (int32_t i = 0; i >= 0; i = nodes[i].next) scratch->symbols.push_back(nodes[i].id);
  return absl::OkStatus();
}

absl::Status Bpe::EncodeChunk(std::string_view chunk, const std::atomic<bool>* cancelled,
                              BpeScratch* scratch, std::vector<int32_t>* ids) const {
  US_RETURN_IF_ERROR(CheckNotCancelled(cancelled));
  const bool cached = chunk.size() <= WordCache::kMaxWordBytes;
  size_t slot = 0;
  if (cached && scratch->cache.Find(chunk, &slot, ids)) return absl::OkStatus();
  std::vector<int32_t>& symbols = scratch->symbols;
  symbols.clear();
  US_RETURN_IF_ERROR(AppendSymbols(chunk, cancelled, &symbols));
  if (symbols.size() <= kMaxScannedSymbols) {
    MergeFew(scratch);
  } else {
    US_RETURN_IF_ERROR(MergeMany(cancelled, scratch));
  }
  if (cached) scratch->cache.Insert(slot, chunk, symbols);
  ids->insert(ids->end(), symbols.begin(), symbols.end());
  return absl::OkStatus();
}

std::unique_ptr<BpeScratch> Bpe::BorrowScratch() const {
  {
    MutexLock lock(mutex_);
    if (!idle_scratch_.empty()) {
      std::unique_ptr<BpeScratch> scratch = std::move(idle_scratch_.back());
      idle_scratch_.pop_back();
      return scratch;
    }
  }
  return std::make_unique<BpeScratch>();
}

void Bpe::ReturnScratch(std::unique_ptr<BpeScratch> scratch) const {
  if (scratch->nodes.capacity() > kMaxIdleNodes) {
    scratch->symbols = {};
    scratch->nodes = {};
    scratch->queue = {};
  }
  MutexLock lock(mutex_);
  if (idle_scratch_.size() < kMaxIdleScratch) idle_scratch_.push_back(std::move(scratch));
}

Bpe::Session::Session(const Bpe& bpe, const std::atomic<bool>* cancelled)
    : bpe_(bpe), cancelled_(cancelled), scratch_(bpe.BorrowScratch()) {}
Bpe::Session::~Session() { bpe_.ReturnScratch(std::move(scratch_)); }

absl::Status Bpe::Session::Encode(std::string_view piece, std::vector<int32_t>* ids) {
  if (piece.empty()) return absl::OkStatus();
  if (bpe_.ignore_merges_) {
    if (const std::optional<int32_t> id = bpe_.vocabulary_.Find(piece)) {
      ids->push_back(*id);
      return absl::OkStatus();
    }
  }
  if (piece.size() <= kMaxUncutBytes)
    return bpe_.EncodeChunk(piece, cancelled_, scratch_.get(), ids);
  size_t chunk_begin = 0;
  size_t position = 0;
  uint32_t left = NextCodePoint(piece, &position);
  while (position < piece.size()) {
    const size_t boundary = position;
    const uint32_t right = NextCodePoint(piece, &position);
    if (!bpe_.IsJoint(left, right) && bpe_.CharacterId(left) >= 0 && bpe_.CharacterId(right) >= 0) {
      US_RETURN_IF_ERROR(bpe_.EncodeChunk(piece.substr(chunk_begin, boundary - chunk_begin),
                                          cancelled_, scratch_.get(), ids));
      chunk_begin = boundary;
    }
    left = right;
  }
  return bpe_.EncodeChunk(piece.substr(chunk_begin), cancelled_, scratch_.get(), ids);
}

}  // namespace ultrasketch::tokenizer_internal
