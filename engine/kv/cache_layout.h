// The shape of a paged KV cache. The storage belongs to a backend.
#ifndef ULTRASKETCH_ENGINE_KV_CACHE_LAYOUT_H_
#define ULTRASKETCH_ENGINE_KV_CACHE_LAYOUT_H_

#include <cstdint>

#include "engine/kv/cache_type.h"

namespace ultrasketch {

// For each layer the keys and values of [num_blocks][num_kv_heads][block_size] tokens: in which
// order they lie within a layer is the backend's.
struct KvCacheLayout {
  int num_layers = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int block_size = 16;  // tokens in a block
  int64_t num_blocks = 0;
  KvCacheType type = KvCacheType::kFp16;
  int64_t token_bytes = 0;  // of a token's key and value of one head: Backend::cache_token_bytes

  // Bytes of all blocks in one layer.
  int64_t layer_bytes() const { return num_blocks * num_kv_heads * block_size * token_bytes; }
  // Bytes of one block over all layers, keys and values.
  int64_t block_bytes() const {
    return int64_t{num_layers} * num_kv_heads * block_size * token_bytes;
  }
  int64_t total_bytes() const { return block_bytes() * num_blocks; }

  int64_t BlocksForTokens(int64_t num_tokens) const {
    return (num_tokens + block_size - 1) / block_size;
  }
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_KV_CACHE_LAYOUT_H_
