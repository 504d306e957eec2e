// What the files beside tokenizer.json say of tokens: tokenizer_config.json,
// special_tokens_map.json and added_tokens.json, read as transformers 5.24 reads them.
#ifndef ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_FOLDER_TOKENS_H_
#define ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_FOLDER_TOKENS_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nlohmann/json.hpp"

namespace ultrasketch::tokenizer_internal {

// A file beside tokenizer.json. `contents` is an object, or null when there is none to use.
struct SideFile {
  std::string path;
  nlohmann::json contents;
};

struct StatedToken {
  std::string content;
  bool single_word = false;
  bool lstrip = false;
  bool rstrip = false;
  bool normalized = false;
  bool special = true;

  // Where it is stated, for messages: a path and a key. Empty for a default of the class.
  std::string origin = {};

  bool operator==(const StatedToken& other) const;  // but for the origin
};

struct StatedTokens {
  // "bos_token" and the like, in the order in which transformers adds them: the seven that every
  // tokenizer may have, then those of the model. Unset when the files say null.
  std::vector<std::pair<std::string, std::optional<StatedToken>>> named;
  std::vector<StatedToken> extra;               // additional_special_tokens, extra_special_tokens
  std::map<int64_t, StatedToken> by_stated_id;  // added_tokens_decoder or added_tokens.json

  // Null when there is none, or it is null.
  const StatedToken* FindNamed(std::string_view name) const;
};

// `class_name` is that of a class that builds its tokenizer anew and has defaults ("" for others).
// A value of a wrong type is not used; `warnings` gets a sentence about it.
StatedTokens ReadStatedTokens(const SideFile& config, const SideFile& special_tokens_map,
                              const SideFile& added_tokens, std::string_view class_name,
                              std::vector<std::string>* warnings);

// Adds the tokens to `tokenizer`, a tokenizer.json, or changes the properties of those that it has,
// as the class does. A new token has the id after the last one, whatever id is stated; a stated one
// that differs is a warning. With `num_rows` of an embedding, a token that would have no row is not
// added: a warning, unless it is a default of the class. `notes` gets a sentence when transformers
// gives added tokens other ids than `tokenizer` has then, or none.
void AddStatedTokens(const StatedTokens& tokens, std::string_view class_name,
                     std::optional<int64_t> num_rows, const std::string& path,
                     nlohmann::json* tokenizer, std::vector<std::string>* warnings,
                     std::vector<std::string>* notes);

}  // namespace ultrasketch::tokenizer_internal

#endif  // ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_FOLDER_TOKENS_H_
