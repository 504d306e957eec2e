// The forms in which a KV cache keeps numbers. Configuration, protocol and logs call them by
// KvCacheTypeName.
#ifndef ULTRASKETCH_ENGINE_KV_CACHE_TYPE_H_
#define ULTRASKETCH_ENGINE_KV_CACHE_TYPE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace ultrasketch {

enum class KvCacheType : uint8_t {
  kFp16,  // binary16; what is finite and larger saturates
  kInt8,  // bytes, with a scale for each token's key and value of a head (int8_row.h)
  kInt4,  // half bytes, with a scale for each group of a rotated key or value (int4_row.h)
  kFp32,  // what the others are measured against
};

inline constexpr KvCacheType kKvCacheTypes[] = {KvCacheType::kFp16, KvCacheType::kInt8,
                                                KvCacheType::kInt4, KvCacheType::kFp32};

// "fp16", "int8", "int4", "fp32".
const char* KvCacheTypeName(KvCacheType type);
std::optional<KvCacheType> FindKvCacheType(std::string_view name);
// Of all types, in their order.
std::vector<std::string> KvCacheTypeNames();

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_KV_CACHE_TYPE_H_
