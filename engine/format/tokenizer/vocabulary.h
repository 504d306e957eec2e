// The tokens of a model and their ids.
#ifndef ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_VOCABULARY_H_
#define ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_VOCABULARY_H_

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"

#include "engine/base/strings.h"

namespace ultrasketch::tokenizer_internal {

// Ids are below this: several times the largest vocabulary in use.
inline constexpr int32_t kMaxVocabularySize = 1 << 22;

// Tokens by id and ids by token. Not thread-safe while tokens are added.
class Vocabulary {
 public:
  Vocabulary() = default;
  Vocabulary(const Vocabulary&) = delete;
  Vocabulary& operator=(const Vocabulary&) = delete;

  // False when the token or the id is already there. 0 <= id < kMaxVocabularySize.
  bool Add(std::string_view token, int32_t id);

  std::optional<int32_t> Find(std::string_view token) const {
    const auto found = ids_.find(A(token));
    return found == ids_.end() ? std::nullopt : std::optional<int32_t>(found->second);
  }

  // nullopt for an id without a token. The view lives as long as the vocabulary.
  std::optional<std::string_view> Token(int32_t id) const {
    if (id < 0 || id >= size() || !tokens_[id].has_value()) return std::nullopt;
    return tokens_[id];
  }

  // One more than the largest id.
  int32_t size() const { return static_cast<int32_t>(tokens_.size()); }

 private:
  std::deque<std::string> spellings_;  // what the views below point at
  absl::flat_hash_map<absl::string_view, int32_t> ids_;
  std::vector<std::optional<std::string_view>> tokens_;
};

}  // namespace ultrasketch::tokenizer_internal

#endif  // ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_VOCABULARY_H_
