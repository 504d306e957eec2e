// The tokenizer of a model's folder: tokenizer.json, and what the files beside it say about it.
#ifndef ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_TOKENIZER_FOLDER_H_
#define ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_TOKENIZER_FOLDER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

#include "engine/format/tokenizer/tokenizer.h"

namespace ultrasketch {

struct FolderTokenizer {
  std::unique_ptr<Tokenizer> tokenizer;

  // "eos_token" of tokenizer_config.json; of special_tokens_map.json where the former has no
  // "added_tokens_decoder" and the latter the key, as in transformers.
  std::optional<int32_t> eos_token_id;

  // What is wrong with the files beside tokenizer.json, and that it is not used: a sentence each,
  // without an end of line.
  std::vector<std::string> warnings;

  // Where transformers 5 makes other tokens of a text than tokenizer.json, which is followed here,
  // says: a sentence each.
  std::vector<std::string> notes;
};

// Tokens that the files beside tokenizer.json define are added to its own, as transformers does
// (folder_tokens.h). Otherwise tokenizer.json is followed to the letter, with two exceptions: where
// tokenizer_config.json has "add_prefix_space", true or false, and transformers 5 obeys it, so does
// this. That is so for the classes that transformers builds anew from the vocabulary:
// LlamaTokenizer and CodeLlamaTokenizer (not with byte-level files), Qwen2Tokenizer, GPT2Tokenizer,
// GPTNeoXTokenizer and CodeGenTokenizer, with or without "Fast"; never for model type mistral, and
// always, as Qwen2Tokenizer, for qwen2. "split_special_tokens", true, is obeyed, too.
//
// tokenizer_config.json, special_tokens_map.json, added_tokens.json and config.json may be absent;
// what is wrong with the first three is a warning, the last is read elsewhere. Errors are those of
// Tokenizer::Load.
absl::StatusOr<FolderTokenizer> LoadFolderTokenizer(const std::string& folder);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_TOKENIZER_FOLDER_H_
