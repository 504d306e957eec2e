// How a GGUF's text is cut before byte-pair encoding: the names in tokenizer.ggml.pre.
#ifndef ULTRASKETCH_ENGINE_FORMAT_GGUF_GGUF_PRE_TOKENIZER_H_
#define ULTRASKETCH_ENGINE_FORMAT_GGUF_GGUF_PRE_TOKENIZER_H_

#include <optional>
#include <string>
#include <string_view>

#include "nlohmann/json.hpp"

namespace ultrasketch {

// What a name of tokenizer.ggml.pre stands for, in terms of tokenizer.json.
struct GgufPreTokenizer {
  nlohmann::json normalizer = nullptr;  // null: none
  nlohmann::json pre_tokenizer = nullptr;
  bool ignore_merges = false;  // a piece that is a token is that token, whatever the merges
  bool adds_bos = false;       // where the file does not say
};

// Nothing for a name that is not supported.
std::optional<GgufPreTokenizer> FindGgufPreTokenizer(std::string_view name);

// "default, gpt-2, ...", for messages.
std::string SupportedGgufPreTokenizers();

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_FORMAT_GGUF_GGUF_PRE_TOKENIZER_H_
