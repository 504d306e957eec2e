#include "engine/format/checksum.h"

#include <lzma.h>

#include <algorithm>
#include <atomic>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

#include "engine/base/strings.h"

namespace ultrasketch {
namespace {

// The polynomial, its coefficient of x^0 in the highest bit, that of x^64 left out.
constexpr uint64_t kPolynomial = 0xc96c5795d7870f42;
constexpr uint64_t kOne = uint64_t{1} << 63;
constexpr uint64_t kX = uint64_t{1} << 62;

// The product of two polynomials modulo the CRC's.
uint64_t Multiply(uint64_t a, uint64_t b) {
  uint64_t product = 0;
  for (; a != 0; a <<= 1) {
    if ((a & kOne) != 0) product ^= b;
    b = (b & 1) != 0 ? b >> 1 ^ kPolynomial : b >> 1;
  }
  return product;
}

// x^(8 * num_bytes): what a CRC is multiplied by when that many zeros follow.
uint64_t ShiftOf(int64_t num_bytes) {
  uint64_t power = kX;
  for (int i = 0; i < 3; ++i) power = Multiply(power, power);
  uint64_t result = kOne;
  for (auto rest = static_cast<uint64_t>(num_bytes); rest != 0; rest >>= 1) {
    if ((rest & 1) != 0) result = Multiply(result, power);
    power = Multiply(power, power);
  }
  return result;
}

// A part of a tensor's bytes that one thread reads.
struct Piece {
  const uint8_t* data;
  int64_t num_bytes;
  uint64_t crc;
};

constexpr int64_t kPieceBytes = int64_t{4} << 20;

}  // namespace

uint64_t Crc64(const void* data, int64_t num_bytes, uint64_t before) {
  return num_bytes == 0 ? before
                        : lzma_crc64(static_cast<const uint8_t*>(data),
                                     static_cast<size_t>(num_bytes), before);
}

uint64_t CombineCrc64(uint64_t first, uint64_t second, int64_t second_bytes) {
  return Multiply(first, ShiftOf(second_bytes)) ^ second;
}

uint64_t TensorChecksumStart(DType dtype, const std::vector<int64_t>& shape) {
  const std::string text = absl::StrCat(A(DTypeName(dtype)), "[", absl::StrJoin(shape, ","), "]");
  return Crc64(text.data(), static_cast<int64_t>(text.size()));
}

std::vector<uint64_t> TensorChecksums(absl::Span<const NamedTensor> tensors, ThreadPool& pool) {
  std::vector<Piece> pieces;
  for (const NamedTensor& tensor : tensors) {
    const int64_t num_bytes = tensor.view.num_bytes();
    for (int64_t begin = 0; begin < num_bytes; begin += kPieceBytes) {
      pieces.push_back({tensor.view.data + begin, std::min(kPieceBytes, num_bytes - begin), 0});
    }
  }
  std::atomic<size_t> next{0};
  pool.ParallelFor(pool.num_threads(), 1, [&](int64_t, int64_t, int) {
    for (size_t i = next++; i < pieces.size(); i = next++) {
      pieces[i].crc = Crc64(pieces[i].data, pieces[i].num_bytes);
    }
  });

  std::vector<uint64_t> checksums;
  checksums.reserve(tensors.size());
  size_t piece = 0;
  for (const NamedTensor& tensor : tensors) {
    uint64_t crc = TensorChecksumStart(tensor.view.dtype, tensor.view.shape);
    for (int64_t rest = tensor.view.num_bytes(); rest > 0; rest -= pieces[piece++].num_bytes) {
      crc = CombineCrc64(crc, pieces[piece].crc, pieces[piece].num_bytes);
    }
    checksums.push_back(crc);
  }
  return checksums;
}

std::string ChecksumString(uint64_t checksum) {
  return absl::StrCat(absl::Hex(checksum, absl::kZeroPad16));
}

bool ParseChecksum(std::string_view text, uint64_t* checksum) {
  if (text.size() != 16) return false;
  *checksum = 0;
  for (const char c : text) {
    const bool is_digit = c >= '0' && c <= '9';
    if (!is_digit && !(c >= 'a' && c <= 'f')) return false;
    *checksum = *checksum << 4 | static_cast<uint64_t>(is_digit ? c - '0' : c - 'a' + 10);
  }
  return true;
}

}  // namespace ultrasketch
