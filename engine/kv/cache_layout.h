// The shape of a paged KV cache. The storage belongs to a backend.
#ifndef ULTRASKETCH_ENGINE_KV_CACHE_LAYOUT_H_
#define ULTRASKETCH_ENGINE_KV_CACHE_LAYOUT_H_

#include <cstdint>

namespace ultrasketch {

// For each layer keys and then values, each [num_blocks][num_kv_heads][block_size * head_dim]: the
// order within a block and head is the backend's.
struct KvCacheLayout {
  int num_layers = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int block_size = 16;  // tokens in a block
  int64_t num_blocks = 0;
  int element_bytes = 4;

  // Bytes of one block over all layers, keys and values.
  int64_t block_bytes() const {
    return int64_t{2} * num_layers * num_kv_heads * block_size * head_dim * element_bytes;
  }
  int64_t total_bytes() const { return block_bytes() * num_blocks; }

  int64_t BlocksForTokens(int64_t num_tokens) const {
    return (num_tokens + block_size - 1) / block_size;
  }
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_KV_CACHE_LAYOUT_H_
