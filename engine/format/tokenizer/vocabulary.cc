#include "engine/format/tokenizer/vocabulary.h"

namespace ultrasketch::tokenizer_internal {

bool Vocabulary::Add(std::string_view token, int32_t id) {
  if (Find(token).has_value() || Token(id).has_value()) return false;
  const std::string_view spelling = spellings_.emplace_back(token);
  ids_.emplace(A(spelling), id);
  if (id >= size()) tokens_.resize(id + 1);
  tokens_[id] = spelling;
  return true;
}

}  // namespace ultrasketch::tokenizer_internal
