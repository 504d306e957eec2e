// A matrix packed for the device, its product with packed inputs, and its rows as embeddings.
#ifndef ULTRASKETCH_ENGINE_CODECS_CUDA_PRODUCT_H_
#define ULTRASKETCH_ENGINE_CODECS_CUDA_PRODUCT_H_

#include <cuda_runtime_api.h>

#include <cstdint>

namespace ultrasketch::cuda {

// How a column finds its codes where several columns share them; engine/codecs/absmaxmin/cuda.
struct BucketTables {
  const void* parts = nullptr;  // BucketPart [num_parts]
  const uint16_t* entries = nullptr;
  int num_parts = 0;
  int entry_words = 1;
  int64_t words_per_block = 0;
};

// Device memory, laid out as tile_layout.h says. W[r][k] = row_scales[r] * tile value.
struct PackedMatrix {
  const void* tiles = nullptr;
  const float* row_scales = nullptr;  // [rows]
  const float* bias = nullptr;        // [rows] or null
  int64_t rows = 0;
  int64_t num_k_tiles = 0;  // of columns
  BucketTables buckets;     // of absmaxmin; its tiles are laid out otherwise
  // Whether the scales that tiles hold (engine/codecs/grouped/cuda) are fp16, else bfloat16.
  bool has_half_scales = false;
};

// A GEMM: y[t][r] = (W x_t)[r] + bias[r], or added to y. `y` has a row stride of `rows` floats,
// `packed_input` one of PackedInputBytes(num_k_tiles). At least one token.
//
// Gated, the matrix is a gate_up_proj: y[t][r] = silu(gate) * up, gates before ups, with a
// stride of rows / 2, not added.
struct ProductArguments {
  PackedMatrix matrix;
  const void* packed_input = nullptr;
  int64_t num_tokens = 0;
  bool accumulate = false;
  bool is_gated = false;
  float* y = nullptr;
  int num_sms = 1;
  int max_shared_bytes = 99 * 1024;  // that a block may have; here what every device allows
};

using LaunchProduct = cudaError_t (*)(const ProductArguments& arguments, cudaStream_t stream);

// A token of a step.
struct TokenInput {
  int32_t id;
  int32_t position;        // for the rotary embedding
  int32_t cache_position;  // in its sequence
  int32_t first_block;     // of its sequence, in the step's block table
};

// hidden [num_tokens, hidden_size] = the tokens' rows of `table`.
using LaunchEmbedFunction = cudaError_t (*)(const PackedMatrix& table, int64_t hidden_size,
                                            const TokenInput* tokens, int64_t num_tokens,
                                            float* hidden, cudaStream_t stream);

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_CUDA_PRODUCT_H_
