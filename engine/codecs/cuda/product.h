// A matrix packed for the device, and its product with prepared inputs.
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
  BucketTables buckets;     // of a sketch; its tiles are laid out otherwise
  // Of tiles that hold scales (engine/codecs/grouped/cuda): they are binary16, else bfloat16.
  bool has_half_scales = false;
};

// y[t][r] = (W x_t)[r] + bias[r], or added to y. `y` has a row stride of `rows` floats, `prepared`
// one of PackedInputBytes(num_k_tiles). At least one token.
//
// Gated, the first half of the rows are gates of the second: y[t][r] = silu(gate) * up, with a
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

// Tiles of sign bits.
cudaError_t LaunchFoldProduct(const ProductArguments& arguments, cudaStream_t stream);
// Whether it takes these arguments gated, on the calling thread's device. Otherwise is_gated must
// not be set.
bool CanGateFoldProduct(const ProductArguments& arguments);
// Tiles of binary16 numbers.
cudaError_t LaunchDenseProduct(const ProductArguments& arguments, cudaStream_t stream);

// Packs `num_rows` rows from `first_row`, a multiple of kMTileRows, on; rows and columns that fill
// up the last tile and step are written too. `bits` is [num_rows, row_bytes] in device memory in
// the codec's stored order, `tiles` the whole matrix.
cudaError_t LaunchPackFold(const uint8_t* bits, int64_t row_bytes, int64_t first_row,
                           int64_t num_rows, int64_t num_k_tiles, void* tiles, cudaStream_t stream);

// The same for `values` [num_rows, cols]. The scale of a row is the power of two that brings its
// largest weight into [2^14, 2^15): within binary16's range, and exact for all that BF16 holds.
cudaError_t LaunchPackDense(const float* values, int64_t cols, int64_t first_row, int64_t num_rows,
                            int64_t num_k_tiles, void* tiles, float* row_scales,
                            cudaStream_t stream);

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_CUDA_PRODUCT_H_
