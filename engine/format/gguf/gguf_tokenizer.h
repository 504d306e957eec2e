// The tokenizer of a GGUF file as a tokenizer.json.
#ifndef ULTRASKETCH_ENGINE_FORMAT_GGUF_GGUF_TOKENIZER_H_
#define ULTRASKETCH_ENGINE_FORMAT_GGUF_GGUF_TOKENIZER_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

#include "engine/format/gguf/gguf_file.h"

namespace ultrasketch {

struct GgufTokenizer {
  nlohmann::json tokenizer;                 // tokenizer.json
  nlohmann::ordered_json tokenizer_config;  // tokenizer_config.json, the chat template included
  std::optional<int32_t> bos_id;
  std::optional<int32_t> eos_id;
  std::optional<int32_t> pad_id;
  // The tokens that end a text or a turn: eos_id first, then those that llama.cpp knows by their
  // spelling.
  std::vector<int32_t> end_ids;
  std::vector<std::string> warnings;  // for the user, each a sentence
};

// Two models of text are known. "gpt2" is byte-pair encoding over bytes, split as the name in
// tokenizer.ggml.pre says, or `pre_tokenizer` where that is given. "llama" is SentencePiece with
// scores: any two neighbours that are a token together may be merged, the best score first. That is
// written as byte-pair encoding with a merge for each way to compose a token, in the order of
// scores.
//
// Every token has its id in the file, and ids are those of llama.cpp (for texts in Unicode's form
// NFC, where the model's own tokenizer normalizes to it). `num_rows` are the embedding's: more
// tokens than that are DATA_LOSS, as is all that is malformed; UNIMPLEMENTED names other models and
// splits. Ids of special tokens outside the vocabulary are not used, with a warning.
absl::StatusOr<GgufTokenizer> MakeGgufTokenizer(const GgufFile& file, int64_t num_rows,
                                                const std::optional<std::string>& pre_tokenizer);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_FORMAT_GGUF_GGUF_TOKENIZER_H_
