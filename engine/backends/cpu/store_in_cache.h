#ifndef ULTRASKETCH_ENGINE_BACKENDS_CPU_STORE_IN_CACHE_H_
#define ULTRASKETCH_ENGINE_BACKENDS_CPU_STORE_IN_CACHE_H_

#include <cstdint>

#include "absl/types/span.h"

#include "engine/kv/cache_layout.h"

namespace ultrasketch {

// Puts a token's key and value of one head, each [head_dim], into slot `slot` of the block and head
// that begins at `start` (AttentionTile::cache), rounded to what the cache's type holds. They may
// be overwritten.
void StoreInCache(const KvCacheLayout& layout, absl::Span<float> key, absl::Span<float> value,
                  uint8_t* start, int64_t slot);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BACKENDS_CPU_STORE_IN_CACHE_H_
