// What the product kernels of absmaxmin share.
#ifndef ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_CUDA_ABSMAXMIN_PRODUCT_CUH_
#define ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_CUDA_ABSMAXMIN_PRODUCT_CUH_

#include <cstdint>

#include "engine/codecs/absmaxmin/cuda/absmaxmin_decode.cuh"
#include "engine/codecs/cuda/product.cuh"

namespace ultrasketch::cuda {

inline constexpr int kInputRowBytes = kKTileColumns * 2;

// The 16-byte pieces of a token's K tile, swizzled so that eight tokens' are in eight places.
__device__ inline int InputPieceOffset(int token, int piece) {
  return token * kInputRowBytes + (piece ^ (token % 8)) * 16;
}

// Begins the copies of this thread, one of num_threads, of a K tile's inputs. Tokens past the end
// repeat the last one; their sums are dropped.
template <int kTokens>
__device__ inline void CopyInputs(const ProductArguments& arguments, int64_t first_token,
                                  int k_tile, int thread, int num_threads, uint8_t* inputs) {
  const int64_t row_bytes = PackedInputBytes(arguments.matrix.num_k_tiles);
  const auto* source =
      static_cast<const uint8_t*>(arguments.packed_input) + int64_t{k_tile} * kInputRowBytes;
#pragma unroll 4
  for (int index = thread; index < kTokens * 8; index += num_threads) {
    const int token = index / 8;
    const int64_t row = min(first_token + token, arguments.num_tokens - 1);
    CopyAsync16(inputs + InputPieceOffset(token, index % 8),
                source + row * row_bytes + index % 8 * 16);
  }
}

// Begins the copies of this thread, one of num_threads, of a tile's part of the buckets. Row blocks
// past the end repeat the last one.
__device__ inline void CopyBuckets(const PackedMatrix& matrix, int64_t first_block, int num_blocks,
                                   int thread, int num_threads, uint32_t* words) {
  const int64_t last_block = (matrix.rows + kBucketBlockRows - 1) / kBucketBlockRows - 1;
  const auto words_per_block = static_cast<int>(matrix.buckets.words_per_block);
  for (int block = 0; block < num_blocks; ++block) {
    const uint32_t* source = static_cast<const uint32_t*>(matrix.tiles) +
                             min(first_block + block, last_block) * words_per_block;
    for (int word = 4 * thread; word < words_per_block; word += 4 * num_threads) {
      CopyAsync16(words + block * words_per_block + word, source + word);
    }
  }
}

// Decodes a warp's columns: those of its ColumnQueue, of K tiles first_k_tile, first_k_tile +
// stride and so on, for kRowBlocks row blocks from `words` on. `begin(K tile)` returns the tile
// where a K tile's weights go, when that is free, and `end()` is called when they are there.
// Columns that fill up the last K tile of a class become some weight or other: their inputs are
// zero. Returns the K tile after the last one, which is past the end.
template <int kRowBlocks, typename Begin, typename End>
__device__ inline int DecodeKTiles(const BucketPart* parts, int num_parts, const uint32_t* words,
                                   int words_per_block, int column, int first_k_tile, int stride,
                                   ColumnQueue& columns, const Begin& begin, const End& end) {
  int k_tile = first_k_tile;
  for (int index = 0; index < num_parts; ++index) {
    PartExpansion part;
    part.part = parts[index];
    part.SetFactors();
    WithCodesOf(part.part, [&]<int kBits, int kHashRows>() {
      for (; k_tile < part.part.end_k_tile; k_tile += stride) {
        const ColumnBuckets buckets = columns.Pop();
        DecodeColumnTiles<kBits, kHashRows, kRowBlocks>(words, words_per_block, part, buckets,
                                                        column, begin(k_tile));
        end();
        columns.AskForNext();
      }
    });
  }
  return k_tile;
}

// Weights are times 2^-kCodeShift, and row scales may be as large as a float allows.
__device__ inline float FinishAbsMaxMin(float sum, float token_scale, float row_scale, float bias) {
  return FinishSum(sum * static_cast<float>(1 << kCodeShift), token_scale, row_scale, bias);
}

__device__ inline void WriteOutput(const ProductArguments& arguments, int64_t token, int64_t row,
                                   float sum, float token_scale, float row_scale, float bias) {
  PutOutput(arguments, token, row, FinishAbsMaxMin(sum, token_scale, row_scale, bias));
}

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_CUDA_ABSMAXMIN_PRODUCT_CUH_
