// A GGUF of the least llama.
#ifndef ULTRASKETCH_TESTS_FORMAT_GGUF_TINY_LLAMA_H_
#define ULTRASKETCH_TESTS_FORMAT_GGUF_TINY_LLAMA_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tests/format/gguf/gguf_writer.h"

namespace ultrasketch {

inline constexpr uint32_t kGgmlF32 = 0;

// The bytes of an F32 tensor.
inline std::string Floats(const std::vector<float>& values) {
  return std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
}

// A llama of one layer: 2 query heads and 1 key head of 4 dimensions, hidden size 32, inner size
// 64, a vocabulary of 8, all weights `weight` but those that a test changes.
class TinyLlama : public GgufWriter {
 public:
  explicit TinyLlama(float weight = 0.5f) {
    String("general.architecture", "llama");
    Uint32("llama.block_count", 1);
    Uint32("llama.context_length", 128);
    Uint32("llama.embedding_length", 32);
    Uint32("llama.feed_forward_length", 64);
    Uint32("llama.attention.head_count", 2);
    Uint32("llama.attention.head_count_kv", 1);
    Uint32("llama.attention.key_length", 4);
    Uint32("llama.attention.value_length", 4);
    Float32("llama.attention.layer_norm_rms_epsilon", 1e-5f);
    String("tokenizer.ggml.model", "gpt2");
    String("tokenizer.ggml.pre", "gpt-2");
    Strings("tokenizer.ggml.tokens", {"a", "b", "ab", "c", "d", "<|x|>", "<|y|>", "e"});
    Int32s("tokenizer.ggml.token_type", {1, 1, 1, 1, 1, 3, 4, 1});
    Strings("tokenizer.ggml.merges", {"a b"});
    for (const auto& [name, shape] : std::vector<std::pair<std::string, std::vector<int64_t>>>{
             {"token_embd.weight", {8, 32}},
             {"output_norm.weight", {32}},
             {"blk.0.attn_norm.weight", {32}},
             {"blk.0.ffn_norm.weight", {32}},
             {"blk.0.attn_q.weight", {8, 32}},
             {"blk.0.attn_k.weight", {4, 32}},
             {"blk.0.attn_v.weight", {4, 32}},
             {"blk.0.attn_output.weight", {32, 8}},
             {"blk.0.ffn_gate.weight", {64, 32}},
             {"blk.0.ffn_up.weight", {64, 32}},
             {"blk.0.ffn_down.weight", {32, 64}}}) {
      int64_t count = 1;
      for (const int64_t extent : shape) count *= extent;
      Tensor(name, kGgmlF32, shape, Floats(std::vector<float>(static_cast<size_t>(count), weight)));
    }
  }

  void Replace(std::string_view name, uint32_t type, std::vector<int64_t> shape, std::string data) {
    RemoveTensor(name);
    Tensor(name, type, std::move(shape), std::move(data));
  }
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_TESTS_FORMAT_GGUF_TINY_LLAMA_H_
