#include "engine/kv/cache_type.h"

namespace ultrasketch {

const char* KvCacheTypeName(KvCacheType type) {
  switch (type) {
    case KvCacheType::kFp16:
      return "fp16";
    case KvCacheType::kInt8:
      return "int8";
    case KvCacheType::kInt4:
      return "int4";
    case KvCacheType::kFp32:
      return "fp32";
  }
  return "";
}

std::optional<KvCacheType> FindKvCacheType(std::string_view name) {
  for (const KvCacheType type : kKvCacheTypes) {
    if (name == KvCacheTypeName(type)) return type;
  }
  return std::nullopt;
}

std::vector<std::string> KvCacheTypeNames() {
  std::vector<std::string> names;
  for (const KvCacheType type : kKvCacheTypes) names.emplace_back(KvCacheTypeName(type));
  return names;
}

}  // namespace ultrasketch
