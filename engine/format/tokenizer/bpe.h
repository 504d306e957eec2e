// Byte-pair encoding (Sennrich et al., "Neural Machine Translation of Rare Words with Subword
// Units", ACL 2016), as the `tokenizers` library defines it.
#ifndef ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_BPE_H_
#define ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_BPE_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "engine/base/mutex.h"
#include "engine/format/tokenizer/json_value.h"
#include "engine/format/tokenizer/vocabulary.h"

namespace ultrasketch::tokenizer_internal {

class BpeScratch;

// Thread-safe after FromJson.
class Bpe {
 public:
  // From the file's "model". DATA_LOSS for malformed contents, UNIMPLEMENTED for options that are
  // not supported: dropout, continuing_subword_prefix, end_of_word_suffix.
  static absl::StatusOr<std::unique_ptr<Bpe>> FromJson(const JsonValue& json);
  ~Bpe();

  const Vocabulary& vocabulary() const { return vocabulary_; }

  // Memory that encoding needs, with a cache of the words that it has encoded: borrowed for the
  // length of a text, so that threads share no lock while they encode.
  class Session {
   public:
    // `cancelled` as in EncodeOptions.
    explicit Session(const Bpe& bpe, const std::atomic<bool>* cancelled = nullptr);
    ~Session();
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;

    const std::atomic<bool>* cancelled() const { return cancelled_; }

    // Appends the ids of one piece of text: well-formed UTF-8, at most 1 GiB. O(n log n).
    // FAILED_PRECONDITION when the piece needs the unknown token and the vocabulary has no token of
    // that name; CANCELLED.
    absl::Status Encode(std::string_view piece, std::vector<int32_t>* ids);

   private:
    const Bpe& bpe_;
    const std::atomic<bool>* const cancelled_;
    std::unique_ptr<BpeScratch> scratch_;
  };

 private:
  friend class Session;

  struct Merge {
    int32_t rank;
    int32_t merged_id;
  };

  Bpe();

  // A pair of ids or of code points as a key; neither is negative.
  static uint64_t PairKey(uint32_t left, uint32_t right) { return uint64_t{left} << 32 | right; }

  absl::Status ReadVocabulary(const JsonValue& json);
  absl::Status ReadOptions(const JsonValue& json);
  absl::Status ReadMerges(const JsonValue& json);
  void IndexCharacters();
  void AddJoint(std::string_view left, std::string_view right);

  const Merge* FindMerge(int32_t left, int32_t right) const;
  int32_t CharacterId(uint32_t code_point) const;
  bool IsJoint(uint32_t left, uint32_t right) const;

  absl::Status EncodeChunk(std::string_view chunk, const std::atomic<bool>* cancelled,
                           BpeScratch* scratch, std::vector<int32_t>* ids) const;
  absl::Status AppendSymbols(std::string_view chunk, const std::atomic<bool>* cancelled,
                             std::vector<int32_t>* symbols) const;
  void MergeFew(BpeScratch* scratch) const;
  absl::Status MergeMany(const std::atomic<bool>* cancelled, BpeScratch* scratch) const;

  std::unique_ptr<BpeScratch> BorrowScratch() const;
  void ReturnScratch(std::unique_ptr<BpeScratch> scratch) const;

  Vocabulary vocabulary_;
  std::optional<std::string> unknown_token_;
  std::optional<int32_t> unknown_id_;
  bool fuse_unknown_ = false;
  bool ignore_merges_ = false;
  bool byte_fallback_ = false;
  std::array<int32_t, 256> byte_ids_;  // of "<0x00>" to "<0xFF>"; -1: none

  absl::flat_hash_map<uint64_t, Merge> merges_;  // by pair of ids

  // Ids of the tokens of one character; -1: none. Those of the byte alphabet, ASCII and Latin are
  // in the array.
  static constexpr uint32_t kNumSmallCodePoints = 0x180;
  std::array<int32_t, kNumSmallCodePoints> small_character_ids_;
  absl::flat_hash_map<uint32_t, int32_t> character_ids_;

  // Pairs of characters that some merge joins. Between any other two of the vocabulary's characters
  // a text can be cut without changing its encoding. Pairs of small code points are in the bits.
  absl::flat_hash_set<uint64_t> joints_;
  std::vector<bool> small_joints_;

  mutable Mutex mutex_;
  mutable std::vector<std::unique_ptr<BpeScratch>> idle_scratch_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace ultrasketch::tokenizer_internal

#endif  // ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_BPE_H_
