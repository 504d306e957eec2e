// Checkpoints as GGUF files, as llama.cpp's converter writes them.
#ifndef ULTRASKETCH_TESTS_FORMAT_GGUF_GGUF_OF_CHECKPOINT_H_
#define ULTRASKETCH_TESTS_FORMAT_GGUF_GGUF_OF_CHECKPOINT_H_

#include "nlohmann/json.hpp"

#include "engine/format/checkpoint.h"
#include "tests/format/gguf/gguf_writer.h"

namespace ultrasketch {

// Adds the model's hyperparameters and tensors: matrices as BF16 or what else they are, vectors as
// F32, rows of q and k of a llama in rotated pairs, llama3's rotary scaling as factors.
void AddModel(const Checkpoint& checkpoint, GgufWriter& writer);

// Adds a tokenizer.json of byte-pair encoding. `pre` is tokenizer.ggml.pre of one over bytes; ""
// for one of characters, which becomes a SentencePiece model whose scores are the order of merges.
void AddTokenizer(const nlohmann::json& tokenizer, const std::string& pre, GgufWriter& writer);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_TESTS_FORMAT_GGUF_GGUF_OF_CHECKPOINT_H_
