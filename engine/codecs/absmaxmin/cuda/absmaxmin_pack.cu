// Packing of AbsMaxMin buckets.
#include "engine/codecs/absmaxmin/cuda/absmaxmin_matrix.h"

namespace ultrasketch::cuda {
namespace {

constexpr int kPackThreads = 256;

// A thread packs a bucket's words of a row block.
__global__ void PackAbsMaxMin(const int8_t* codes, int64_t row_codes, int64_t first_code,
                              const __grid_constant__ BucketPart part, int64_t first_row,
                              int64_t num_rows, int64_t words_per_block, uint32_t* words) {
  const int64_t num_buckets = int64_t{part.words_per_hash_row} / part.bits * part.hash_rows;
  const int64_t bucket = int64_t{blockIdx.x} * kPackThreads + threadIdx.x;
  const int64_t block = blockIdx.y;
  if (bucket >= num_buckets) return;
  uint32_t planes[8] = {};
  for (int row = 0; row < kBucketBlockRows; ++row) {
    const int64_t source_row = block * kBucketBlockRows + row;
    if (source_row >= num_rows) break;
    const int code = codes[source_row * row_codes + first_code + bucket];
    const auto magnitude = static_cast<uint32_t>(abs(code));
    const int bit = CodeBitOfRow(part.bits, row);
    for (int plane = 0; plane < part.bits - 1; ++plane) {
      planes[plane] |= (magnitude >> plane & 1u) << bit;
    }
    planes[part.bits - 1] |= (code < 0 ? 1u : 0u) << bit;
  }
  uint32_t* out = words + (first_row / kBucketBlockRows + block) * words_per_block +
                  part.first_word + bucket * part.bits;
  for (int plane = 0; plane < part.bits; ++plane) out[plane] = planes[plane];
}

}  // namespace

cudaError_t LaunchPackAbsMaxMin(const int8_t* codes, int64_t row_codes, int64_t first_code,
                                const BucketPart& part, int64_t first_row, int64_t num_rows,
                                int64_t words_per_block, uint32_t* words, cudaStream_t stream) {
  const int64_t num_buckets = int64_t{part.words_per_hash_row} / part.bits * part.hash_rows;
  const dim3 grid(static_cast<unsigned>((num_buckets + kPackThreads - 1) / kPackThreads),
                  static_cast<unsigned>((num_rows + kBucketBlockRows - 1) / kBucketBlockRows));
  PackAbsMaxMin<<<grid, kPackThreads, 0, stream>>>(codes, row_codes, first_code, part, first_row,
                                                   num_rows, words_per_block, words);
  return cudaGetLastError();
}

}  // namespace ultrasketch::cuda
