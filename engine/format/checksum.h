// Checksums of stored tensors: CRC-64/XZ, as in .xz files (ECMA-182's polynomial, reflected).
#ifndef ULTRASKETCH_ENGINE_FORMAT_CHECKSUM_H_
#define ULTRASKETCH_ENGINE_FORMAT_CHECKSUM_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/types/span.h"

#include "engine/base/dtype.h"
#include "engine/base/tensor.h"
#include "engine/base/thread_pool.h"

namespace ultrasketch {

// The CRC of some bytes that follow those whose CRC is `before`; 0 when there are none before.
uint64_t Crc64(const void* data, int64_t num_bytes, uint64_t before = 0);

// The CRC of two runs of bytes, one after the other, from the CRC of each; `second_bytes` is the
// length of the second.
uint64_t CombineCrc64(uint64_t first, uint64_t second, int64_t second_bytes);

// The CRC of a tensor's type and shape, written like "BF16[32000,2048]"; that of the tensor goes on
// from here with its bytes.
uint64_t TensorChecksumStart(DType dtype, const std::vector<int64_t>& shape);

// The checksum of each tensor. All threads of `pool` share the work, of one large tensor too.
std::vector<uint64_t> TensorChecksums(absl::Span<const NamedTensor> tensors, ThreadPool& pool);

// 16 lower-case hexadecimal digits.
std::string ChecksumString(uint64_t checksum);

// False when `text` is not what ChecksumString gives.
bool ParseChecksum(std::string_view text, uint64_t* checksum);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_FORMAT_CHECKSUM_H_
