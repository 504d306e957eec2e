#include "engine/backends/cache_token_bytes.h"

#include <string>

#include "absl/strings/str_cat.h"

namespace ultrasketch {

absl::StatusOr<int64_t> CacheTokenBytes(const Backend& backend, KvCacheType type, int head_dim) {
  const int64_t bytes = backend.cache_token_bytes(type, head_dim);
  if (bytes > 0) return bytes;
  std::string others;
  for (const KvCacheType other : kKvCacheTypes) {
    if (backend.cache_token_bytes(other, head_dim) == 0) continue;
    absl::StrAppend(&others, others.empty() ? "" : ", ", KvCacheTypeName(other));
  }
  return absl::UnimplementedError(
      absl::StrCat("KV cache of type ", KvCacheTypeName(type), ": ", std::string(backend.name()),
                   " has none for heads of ", head_dim, "; expected one of ", others));
}

}  // namespace ultrasketch
