// The kernels of a step other than those that only multiply: plain launch functions on device
// pointers. Each returns the launch's error and does not wait. `num_sms` decides only
// how work is spread, never a result.
#ifndef ULTRASKETCH_ENGINE_BACKENDS_CUDA_KERNELS_H_
#define ULTRASKETCH_ENGINE_BACKENDS_CUDA_KERNELS_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "engine/codecs/cuda/input_transform.h"
#include "engine/codecs/cuda/product.h"
#include "engine/codecs/cuda/tile_layout.h"

namespace ultrasketch::cuda {

// Most columns of a site: a token's input is held in a block's shared memory.
int64_t MaxInputColumns(int max_shared_bytes);

// packed_input[i] = packed(hidden[row] / rms(hidden[row]) * weight), row = rows[i], or i if `rows`
// is null.
cudaError_t LaunchRmsNorm(const float* hidden, const int32_t* rows, int64_t num_rows,
                          const float* weight, float epsilon, const InputTransform& transform,
                          int num_sms, void* packed_input, cudaStream_t stream);

// packed_input = packed(silu(gate) * up) of gate_up [num_tokens, 2 * transform.cols].
cudaError_t LaunchSwiGlu(const float* gate_up, int64_t num_tokens, const InputTransform& transform,
                         int num_sms, void* packed_input, cudaStream_t stream);

// packed_input = packed(rows), rows [num_tokens, transform.cols], in the order of columns or
// permuted.
cudaError_t LaunchTransform(const float* rows, bool is_permuted, int64_t num_tokens,
                            const InputTransform& transform, int num_sms, void* packed_input,
                            cudaStream_t stream);

// --- Attention ---
//
// In a cache of floats keys lie as [block][kv head][slot][head_dim], values as [block][kv head]
// [head_dim][slot], both fp16 (larger values saturate): so a lane reads runs of either as the
// tensor cores take them. A cache of bytes is [block][kv head][run of 16 slots] of what
// int8_attention.cuh describes.

// Positions are attended to in KV splits of this many, counted from 0, and a KV split in KV tiles.
// A query's result is the merge of its KV splits in ascending order, and theirs of their KV tiles,
// whoever computes them.
inline constexpr int kKvTileKeys = 64;
inline constexpr int kAttentionWarps = 4;
inline constexpr int kKvSplitKeys = kKvTileKeys * kAttentionWarps;
US_HOST_DEVICE constexpr int64_t NumKvSplits(int64_t num_keys) {
  return (num_keys + kKvSplitKeys - 1) / kKvSplitKeys;
}

// Up to so many KV splits of a token are merged by whoever reads its result, each block of a
// product all of them. In a step of no more than kMaxMergedItems, more of them are merged by the
// block that is the last to finish one: of many blocks, each would wait for what it wrote while
// others want its place.
inline constexpr int64_t kMaxUnmergedSplits = 8;
inline constexpr int64_t kMaxMergedItems = 96;

// Queries of a tile: rows of one instruction; over a cache of bytes half as many, each in two
// rows. A block of a prompt has eight tiles of tokens.
inline constexpr int kAttentionRows = 16;
inline constexpr int kInt8Rows = kAttentionRows / 2;
inline constexpr int kPromptTiles = 8;

// Dimensions of a head in a cache of bytes, filled up to those that there are kernels for; 0 of
// larger heads.
US_HOST_DEVICE constexpr int Int8HeadDim(int head_dim) {
  if (head_dim <= 128) return (head_dim + 31) / 32 * 32;
  return head_dim <= 256 ? 256 : 0;
}
// Bytes of a token's key and value with their scales.
US_HOST_DEVICE constexpr int Int8TokenBytes(int padded_head_dim) {
  return 2 * padded_head_dim + 2 * 2;
}

struct AttentionGeometry {
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int block_size = 0;
  bool is_int8 = false;  // the cache is of bytes

  US_HOST_DEVICE int heads_per_group() const { return num_heads / num_kv_heads; }
  // Whether keys and values are staged in shared memory: there are kernels for it, prompts have one
  // of their own.
  US_HOST_DEVICE bool is_staged() const {
    return is_int8 || (head_dim % 8 == 0 && head_dim <= 128);
  }
  US_HOST_DEVICE int tile_rows() const { return is_int8 ? kInt8Rows : kAttentionRows; }
  // Query heads of a tile, tokens of a tile, and tiles for all query heads of a key head.
  US_HOST_DEVICE int heads_per_tile() const {
    return heads_per_group() < tile_rows() ? heads_per_group() : tile_rows();
  }
  US_HOST_DEVICE int tokens_per_tile() const { return tile_rows() / heads_per_tile(); }
  US_HOST_DEVICE int tiles_per_group() const {
    return (heads_per_group() + heads_per_tile() - 1) / heads_per_tile();
  }
  US_HOST_DEVICE int64_t query_width() const { return int64_t{num_heads} * head_dim; }
  US_HOST_DEVICE int64_t qkv_width() const {
    return (int64_t{num_heads} + 2 * num_kv_heads) * head_dim;
  }
  // Floats of a KV split's partial result for all heads of a tile of tokens (PartialLayout).
  US_HOST_DEVICE int64_t partial_floats() const {
    return (tokens_per_tile() * num_heads * (int64_t{head_dim} + 2) + 3) / 4 * 4;
  }
  friend bool operator==(const AttentionGeometry&, const AttentionGeometry&) = default;
};

// Where a KV split's partial result has what: the weighted values of the tile's tokens, each a row
// as attention's result is, then a maximum and a sum for each token and head.
//
//   values   [tokens_per_tile][num_heads][head_dim]
//   ranges   [tokens_per_tile][num_heads] {maximum, sum}
struct PartialLayout {
  int split_floats;
  int first_range;

  US_HOST_DEVICE explicit PartialLayout(const AttentionGeometry& geometry)
      : split_floats(static_cast<int>(geometry.partial_floats())),
        first_range(geometry.tokens_per_tile() * geometry.num_heads * geometry.head_dim) {}
  // `row` is a token of the tile times num_heads, plus a head.
  US_HOST_DEVICE int RangeOffset(int row) const { return first_range + 2 * row; }
};

// A layer's part of the cache; of one of bytes, keys and values are both in `keys`.
struct CacheView {
  void* keys = nullptr;
  void* values = nullptr;
};

// Rotates q and k of qkv in place and stores k and v.
cudaError_t LaunchRotateAndStore(const AttentionGeometry& geometry, const float* frequencies,
                                 const TokenInput* tokens, int64_t num_tokens,
                                 const int32_t* block_table, CacheView cache, float* qkv,
                                 cudaStream_t stream);
cudaError_t LaunchRotateAndStoreInt8(const AttentionGeometry& geometry, const float* frequencies,
                                     const TokenInput* tokens, int64_t num_tokens,
                                     const int32_t* block_table, CacheView cache, float* qkv,
                                     cudaStream_t stream);

// Some neighbouring tokens of a sequence, against all of their keys or against one KV split of
// them. Those of a tile at most; of a prompt's item, of kPromptTiles.
struct AttentionItem {
  int32_t first_token;
  int32_t num_tokens;   // 0: nothing to do
  int32_t num_keys;     // that the first token sees; each next sees one more
  int32_t first_block;  // in the step's block table
  int32_t split;        // or -1: all
  int32_t slot;         // where a KV split's partial result goes
};

// Where a token's result is: its tile's KV splits are in `num_splits` slots from first_slot on, as
// token `tile_token` of them; with num_splits 0 it is in `attended`.
struct AttentionToken {
  int32_t first_slot;
  int32_t num_splits;
  int32_t tile_token;
};

struct AttentionArguments {
  AttentionGeometry geometry;
  const float* qkv = nullptr;  // rotated and stored in the cache, but for LaunchTokenAttention
  CacheView cache;
  const int32_t* block_table = nullptr;
  const AttentionItem* items = nullptr;
  int64_t num_items = 0;
  const AttentionItem* prompt_items = nullptr;  // against all of their keys
  int64_t num_prompt_items = 0;
  float* partials = nullptr;  // [slot][geometry.partial_floats()]
  float* attended = nullptr;  // [token - first_token][query_width]
  // Whether tokens of more than kMaxUnmergedSplits have theirs merged to `attended`, and how many
  // of them are there: [slot of the first KV split][key heads * tiles of their query heads], zeros
  // before a kernel and after it.
  bool merges_splits = false;
  int32_t* finished = nullptr;
  int64_t first_token = 0;
  int num_sms = 1;
  int64_t max_shared_bytes = 0;  // that a block may have
  // For LaunchTokenAttention alone.
  const float* frequencies = nullptr;  // [head_dim / 2]
  const TokenInput* tokens = nullptr;  // of the step, for their positions
};

// Both kinds of items, as far as there are any. Prompts' need a geometry that is staged.
cudaError_t LaunchAttention(const AttentionArguments& arguments, cudaStream_t stream);
cudaError_t LaunchPromptAttention(const AttentionArguments& arguments, cudaStream_t stream);
cudaError_t LaunchInt8Attention(const AttentionArguments& arguments, cudaStream_t stream);

// RotateAndStore and attention in one, of steps with no more than one token of each sequence whose
// items have a KV split each, or all of no more than one.
bool HasTokenAttention(const AttentionGeometry& geometry, int64_t max_shared_bytes);
cudaError_t LaunchTokenAttention(const AttentionArguments& arguments, cudaStream_t stream);
cudaError_t LaunchInt8TokenAttention(const AttentionArguments& arguments, cudaStream_t stream);

// packed_input[t] = packed(attention of token t) for tokens [first_token, first_token + num_tokens)
// of the step; `tokens` and `packed_input` are those of the whole step.
cudaError_t LaunchFinishAttention(const AttentionArguments& arguments, const AttentionToken* tokens,
                                  int64_t num_tokens, const InputTransform& transform, int num_sms,
                                  void* packed_input, cudaStream_t stream);

// --- Products that make their inputs themselves ---

// With more tokens a kernel of their own for the inputs is quicker.
inline constexpr int64_t kMaxFusedTokens = 2;

// What a product's inputs are made of, [num_tokens][transform.cols].
struct FusedInput {
  enum class Kind : int {
    kNormalized,  // rows / rms(rows) * weight
    kAttended,    // what LaunchFinishAttention takes, of tokens [0, num_tokens)
    kRows,        // rows as they are
    kPermuted,    // rows in the transform's permuted order, with its signs
  };
  Kind kind = Kind::kRows;
  const float* rows = nullptr;
  const float* weight = nullptr;
  float epsilon = 0.0f;
  AttentionArguments attention;
  const AttentionToken* attention_tokens = nullptr;
  InputTransform transform;
  void* packed_input = nullptr;  // of a kernel of its own; not written by a product
};

// Whether inputs of a transform may be written in its permuted order.
bool HasNarrowIndices(const InputTransform& transform);
// Whether there is a kernel for tiles of sign bits; `max_shared_bytes` are what a block may have.
// None for kRows.
bool CanFuseProduct(const FusedInput& input, const PackedMatrix& matrix,
                    const InputTransform& transform, int64_t num_tokens, int num_sms,
                    int64_t max_shared_bytes);
// The same results to the bit as of the kernels one by one. Gated outputs are written in the order
// of rows or, with `output_indices`, the scatter indices of a transform that HasNarrowIndices, in
// its permuted order and with its signs.
cudaError_t LaunchFusedProduct(const ProductArguments& arguments, const FusedInput& input,
                               const void* output_indices, cudaStream_t stream);

// --- Sampling ---

// The most likely token of a row, ties to the lowest id.
struct RowMaximum {
  int32_t id;
  int32_t usable;  // 0: a logit is NaN or +infinity, or all are -infinity
};
cudaError_t LaunchRowMaxima(const float* logits, int64_t vocab_size, const int32_t* rows,
                            int64_t num_rows, RowMaximum* maxima, cudaStream_t stream);

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_BACKENDS_CUDA_KERNELS_H_
