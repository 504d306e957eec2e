#ifndef ULTRASKETCH_ENGINE_BACKENDS_CACHE_TOKEN_BYTES_H_
#define ULTRASKETCH_ENGINE_BACKENDS_CACHE_TOKEN_BYTES_H_

#include <cstdint>

#include "absl/status/statusor.h"

#include "engine/backends/backend.h"

namespace ultrasketch {

// Backend::cache_token_bytes; UNIMPLEMENTED, with the types that there are, when the backend has no
// such cache.
absl::StatusOr<int64_t> CacheTokenBytes(const Backend& backend, KvCacheType type, int head_dim);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BACKENDS_CACHE_TOKEN_BYTES_H_
