// Seeds for gguf_fuzzer: write_gguf_corpus FOLDER.
#include <filesystem>
#include <iostream>
#include <string>

#include "engine/base/file.h"
#include "engine/format/gguf/ggml_types.h"
#include "tests/format/gguf/tiny_llama.h"

namespace ultrasketch {
namespace {

// A tensor of every type of ggml, which no model has.
GgufWriter AllTypes() {
  GgufWriter writer;
  writer.String("general.architecture", "llama");
  for (uint32_t id = 0; id < 64; ++id) {
    const GgmlType* type = FindGgmlType(id);
    if (type == nullptr) continue;
    writer.Tensor(std::string(type->name), id, {2, type->block_elements},
                  std::string(static_cast<size_t>(2 * type->block_bytes), '\x11'));
  }
  return writer;
}

GgufWriter Scored() {
  TinyLlama writer;
  writer.String("tokenizer.ggml.model", "llama");
  writer.Strings("tokenizer.ggml.tokens",
                 {"<unk>", "<s>", "</s>", "<0x41>", "\xe2\x96\x81", "a", "b", "ab"});
  writer.Int32s("tokenizer.ggml.token_type", {2, 3, 3, 6, 1, 1, 1, 1});
  writer.Float32s("tokenizer.ggml.scores", {0, 0, 0, 0, -1, -2, -3, -4});
  writer.String("tokenizer.chat_template", "{{ messages }}");
  return writer;
}

GgufWriter Rotary() {
  TinyLlama writer;
  writer.String("tokenizer.ggml.pre", "llama-bpe");
  writer.Uint32("tokenizer.ggml.bos_token_id", 5);
  writer.Float32("llama.rope.freq_base", 5e6f);
  writer.Tensor("rope_freqs.weight", kGgmlF32, {2}, Floats({1, 8}));
  writer.Tensor("blk.0.attn_q.bias", kGgmlF32, {8}, Floats(std::vector<float>(8, 1.0f)));
  return writer;
}

int Main(const std::string& folder) {
  std::filesystem::create_directories(folder);
  TinyLlama version2;
  version2.version = 2;
  const std::pair<const char*, std::string> seeds[] = {{"llama", TinyLlama().Write()},
                                                       {"version2", version2.Write()},
                                                       {"all_types", AllTypes().Write()},
                                                       {"scored", Scored().Write()},
                                                       {"rotary", Rotary().Write()}};
  for (const auto& [name, bytes] : seeds) {
    const absl::Status status = WriteFileAtomically(folder + "/" + name + ".gguf", bytes);
    if (status.ok()) continue;
    std::cerr << status.message() << "\n";
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace ultrasketch

int main(int argc, char** argv) {
  if (argc == 2) return ultrasketch::Main(argv[1]);
  std::cerr << "usage: write_gguf_corpus FOLDER\n";
  return 2;
}
