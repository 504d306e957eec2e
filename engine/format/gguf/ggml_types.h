// Tensor types of ggml, the library behind GGUF files: blocks of quantized weights and their
// values. Source: https://github.com/ggml-org/ggml (ggml-common.h has the layouts, ggml.h the
// numbers).
#ifndef ULTRASKETCH_ENGINE_FORMAT_GGUF_GGML_TYPES_H_
#define ULTRASKETCH_ENGINE_FORMAT_GGUF_GGML_TYPES_H_

#include <cstdint>
#include <string>
#include <string_view>

namespace ultrasketch {

// A type of ggml. Elements are stored in blocks; a row holds whole blocks.
struct GgmlType {
  // Writes the `block_elements` values of the block at `block`, which need not be aligned, to
  // `out`. The arithmetic is ggml's own, in float: values equal those of its reference functions to
  // the bit, NaNs and infinities included. A block decodes to something whatever its bytes are.
  using Decode = void (*)(const uint8_t* block, float* out);

  uint32_t id;            // in files
  std::string_view name;  // "Q4_K"
  int block_elements;
  int block_bytes;
  Decode decode;  // null: not supported, the size alone is known
};

// Null when no type has this number.
const GgmlType* FindGgmlType(uint32_t id);

// "F32, F16, ...": the types that have a decoder, for messages.
std::string SupportedGgmlTypes();

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_FORMAT_GGUF_GGML_TYPES_H_
