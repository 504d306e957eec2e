// Packing of sketches.
#include "engine/codecs/absmaxmin/cuda/sketch_matrix.h"

namespace ultrasketch::cuda {
namespace {

constexpr int kPackThreads = 256;

// A thread packs a bucket's words of a row block.
__global__ void PackSketch(const int8_t* levels, int64_t row_levels, int64_t first_level,
                           const __grid_constant__ SketchPart part, int64_t first_row,
                           int64_t num_rows, int64_t words_per_block, uint32_t* words) {
  const int64_t num_buckets = int64_t{part.words_per_hash_row} / part.bits * part.hash_rows;
  const int64_t bucket = int64_t{blockIdx.x} * kPackThreads + threadIdx.x;
  const int64_t block = blockIdx.y;
  if (bucket >= num_buckets) return;
  uint32_t planes[8] = {};
  for (int row = 0; row < kSketchBlockRows; ++row) {
    const int64_t source_row = block * kSketchBlockRows + row;
    if (source_row >= num_rows) break;
    const int level = levels[source_row * row_levels + first_level + bucket];
    const auto magnitude = static_cast<uint32_t>(abs(level));
    const int bit = SketchBitOfRow(part.bits, row);
    for (int plane = 0; plane < part.bits - 1; ++plane) {
      planes[plane] |= (magnitude >> plane & 1u) << bit;
    }
    planes[part.bits - 1] |= (level < 0 ? 1u : 0u) << bit;
  }
  uint32_t* out = words + (first_row / kSketchBlockRows + block) * words_per_block +
                  part.first_word + bucket * part.bits;
  for (int plane = 0; plane < part.bits; ++plane) out[plane] = planes[plane];
}

}  // namespace

cudaError_t LaunchPackSketch(const int8_t* levels, int64_t row_levels, int64_t first_level,
                             const SketchPart& part, int64_t first_row, int64_t num_rows,
                             int64_t words_per_block, uint32_t* words, cudaStream_t stream) {
  const int64_t num_buckets = int64_t{part.words_per_hash_row} / part.bits * part.hash_rows;
  const dim3 grid(static_cast<unsigned>((num_buckets + kPackThreads - 1) / kPackThreads),
                  static_cast<unsigned>((num_rows + kSketchBlockRows - 1) / kSketchBlockRows));
  PackSketch<<<grid, kPackThreads, 0, stream>>>(levels, row_levels, first_level, part, first_row,
                                                num_rows, words_per_block, words);
  return cudaGetLastError();
}

}  // namespace ultrasketch::cuda
