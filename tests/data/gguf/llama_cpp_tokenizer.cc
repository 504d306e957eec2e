// llama.cpp's tokenizer alone, for make_ids.py: the vocabulary's code with the few functions of the
// model loader that it calls. Usage: PROGRAM FILE.gguf < lines "<add> <parse> <text in hex>"; the
// ids of each line go to standard output.
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <sstream>
#include <string>

#include "llama-model-loader.h"
#include "llama-vocab.h"

namespace {

gguf_context* metadata = nullptr;

int64_t Find(llm_kv key) { return gguf_find_key(metadata, LLM_KV(LLM_ARCH_LLAMA)(key).c_str()); }

}  // namespace

template <>
bool llama_model_loader::get_key<std::string>(enum llm_kv key, std::string& value, bool) {
  const int64_t index = Find(key);
  if (index >= 0) value = gguf_get_val_str(metadata, index);
  return index >= 0;
}

template <>
bool llama_model_loader::get_key<uint32_t>(enum llm_kv key, uint32_t& value, bool) {
  const int64_t index = Find(key);
  if (index >= 0) value = gguf_get_val_u32(metadata, index);
  return index >= 0;
}

template <>
bool llama_model_loader::get_key<bool>(enum llm_kv key, bool& value, bool) {
  const int64_t index = Find(key);
  if (index >= 0) value = gguf_get_val_bool(metadata, index);
  return index >= 0;
}

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  metadata = gguf_init_from_file(argv[1], {/*no_alloc=*/true, /*ctx=*/nullptr});
  if (metadata == nullptr) return 1;
  auto* loader = static_cast<llama_model_loader*>(std::calloc(1, sizeof(llama_model_loader)));
  loader->metadata = metadata;
  llama_vocab vocabulary;
  vocabulary.load(*loader, LLM_KV(LLM_ARCH_LLAMA));
  std::string line;
  while (std::getline(std::cin, line)) {
    std::istringstream fields(line);
    int add = 0, parse = 0;
    std::string digits, text;
    fields >> add >> parse >> digits;
    for (size_t i = 0; i + 1 < digits.size(); i += 2) {
      text += static_cast<char>(std::stoi(digits.substr(i, 2), nullptr, 16));
    }
    for (const auto id : vocabulary.tokenize(text, add != 0, parse != 0)) std::cout << id << ' ';
    std::cout << '\n';
  }
}
