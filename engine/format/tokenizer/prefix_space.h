// The key "add_prefix_space" of tokenizer_config.json: the classes of transformers that obey it,
// and what it changes in a tokenizer.json.
#ifndef ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_PREFIX_SPACE_H_
#define ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_PREFIX_SPACE_H_

#include <optional>
#include <string_view>

#include "nlohmann/json.hpp"

namespace ultrasketch::tokenizer_internal {

// The class that transformers 5 builds anew from a file's vocabulary, in the place of the file's
// other components: a row of the table in prefix_space.cc.
struct RebuildingClass;

// Null when the file is used as it is. `stated_class` is "tokenizer_class" ("" when there is none),
// `model_type` that of config.json; `is_byte_level` says whether the word "ByteLevel" is in the
// file.
const RebuildingClass* FindRebuildingClass(std::string_view stated_class,
                                           std::string_view model_type, bool is_byte_level);

std::string_view ClassName(const RebuildingClass& rebuilding);

// What the class is told by tokenizer_config.json.
struct PrefixSpaceSettings {
  std::optional<bool> add_prefix_space;
  bool legacy = false;
};

// Makes `tokenizer`, a tokenizer.json, obey settings.add_prefix_space where it is set: as the class
// does, with its own components for those of the file that may add a space (LlamaTokenizer's are
// all but the model and the template).
void SetPrefixSpace(const RebuildingClass& rebuilding, const PrefixSpaceSettings& settings,
                    nlohmann::json* tokenizer);

// Whether `tokenizer` has the normalizer and the pre-tokenizer that the class builds.
bool HasComponentsOfClass(const RebuildingClass& rebuilding, const PrefixSpaceSettings& settings,
                          const nlohmann::json& tokenizer);

}  // namespace ultrasketch::tokenizer_internal

#endif  // ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_PREFIX_SPACE_H_
