#include "engine/backends/cpu/store_in_cache.h"

#include <algorithm>
#include <cstddef>

#include "engine/kv/fp16_row.h"
#include "engine/kv/int4_row.h"
#include "engine/kv/int8_row.h"

namespace ultrasketch {
namespace {

// Keys are stored across: by way of the value's place, which is written last.
template <typename Element>
void StoreTransposed(const Element* key, int64_t head_dim, int64_t block_size, Element* keys) {
  for (int64_t d = 0; d < head_dim; ++d) keys[d * block_size] = key[d];
}

void StoreFp32(int64_t block_size, absl::Span<const float> key, absl::Span<const float> value,
               uint8_t* start, int64_t slot) {
  const auto head_dim = static_cast<int64_t>(key.size());
  auto* const keys = reinterpret_cast<float*>(start);
  StoreTransposed(key.data(), head_dim, block_size, keys + slot);
  std::copy(value.begin(), value.end(), keys + (block_size + slot) * head_dim);
}

void StoreFp16(int64_t block_size, absl::Span<const float> key, absl::Span<const float> value,
               uint8_t* start, int64_t slot) {
  const auto head_dim = static_cast<int64_t>(key.size());
  auto* const keys = reinterpret_cast<uint16_t*>(start);
  uint16_t* const place = keys + (block_size + slot) * head_dim;
  RoundToFp16(key, place);
  StoreTransposed(place, head_dim, block_size, keys + slot);
  RoundToFp16(value, place);
}

void StoreInt8(int64_t block_size, absl::Span<const float> key, absl::Span<const float> value,
               uint8_t* start, int64_t slot) {
  const auto head_dim = static_cast<int64_t>(key.size());
  auto* const keys = reinterpret_cast<int8_t*>(start);
  auto* const scales = reinterpret_cast<uint16_t*>(keys + 2 * block_size * head_dim);
  int8_t* const place = keys + (block_size + slot) * head_dim;
  scales[slot] = RoundToInt8(key, place);
  StoreTransposed(place, head_dim, block_size, keys + slot);
  scales[block_size + slot] = RoundToInt8(value, place);
}

void StoreInt4(int64_t block_size, absl::Span<float> key, absl::Span<float> value, uint8_t* start,
               int64_t slot) {
  const int64_t row_bytes = static_cast<int64_t>(key.size()) / 2;
  auto* scales = reinterpret_cast<uint16_t*>(start + 2 * block_size * row_bytes) + slot;
  uint8_t* const place = start + (block_size + slot) * row_bytes;
  for (const bool is_key : {true, false}) {
    const absl::Span<float> row = is_key ? key : value;
    RotateRow(row);
    for (size_t first = 0; first < row.size(); first += kInt4Group) {
      const absl::Span<const float> group = row.subspan(first, kInt4Group);
      uint8_t codes[kInt4Group];
      *scales = RoundToInt4(group, codes);
      scales += block_size;
      for (size_t i = 0; i < group.size(); i += 2) {
        place[(first + i) / 2] = static_cast<uint8_t>(codes[i] | codes[i + 1] << 4);
      }
    }
    if (is_key) StoreTransposed(place, row_bytes, block_size, start + slot);
  }
}

}  // namespace

void StoreInCache(const KvCacheLayout& layout, absl::Span<float> key, absl::Span<float> value,
                  uint8_t* start, int64_t slot) {
  switch (layout.type) {
    case KvCacheType::kFp16:
      return StoreFp16(layout.block_size, key, value, start, slot);
    case KvCacheType::kInt8:
      return StoreInt8(layout.block_size, key, value, start, slot);
    case KvCacheType::kInt4:
      return StoreInt4(layout.block_size, key, value, start, slot);
    case KvCacheType::kFp32:
      return StoreFp32(layout.block_size, key, value, start, slot);
  }
}

}  // namespace ultrasketch
