// How sign bits lie in device memory so that they become operands of integer tensor instructions
// with one logic operation for each register: index arithmetic shared by the kernels that pack,
// those that multiply, and the tests.
//
// A bit K tile is 256 columns of an M tile (16 rows): an instruction takes 32 of them
// (mma.sync.m16n8k32, wgmma m64nNk32). Its columns come in two halves of 128, a half in eight runs
// of 16, a run in four units of 4. A unit of a row is what a lane gives an instruction in one
// register: four bytes. In memory the four bits of a unit are one bit of each of the four bytes of
// a word, so that `word >> b & 0x01010101` is the register.
//
//   packed bits   [M tile][bit K tile][lane] 4 words: {rows l / 4, l / 4 + 8} of either half
//
// mma.sync.m16n8k256, which counts bits, takes the four words as they lie, and inputs in this very
// order (bit_serial.cuh).
//
// Lane l has the runs l % 4 (bits 0 to 3 of each byte) and l % 4 + 4 (bits 4 to 7) of its rows, a
// bit for each unit. A bit is 1 where the weight is +1 and 0 where it is -1:
//
//   sum of weight * input = 2 * (sum of bit * input) - (sum of inputs)
//
// All of it integers, so that sums are exact, whoever adds them in which order.
#ifndef ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_BIT_LAYOUT_H_
#define ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_BIT_LAYOUT_H_

#include <cstdint>

#include "engine/codecs/cuda/tile_layout.h"

namespace ultrasketch::cuda {

inline constexpr int kBitKTileColumns = 256;
inline constexpr int kBitKTileBytes = 32 * 16;
inline constexpr int kRunColumns = 16;
inline constexpr int kUnitsPerRun = 4;
inline constexpr int kInstructionsPerBitKTile = 8;
inline constexpr uint32_t kUnitMask = 0x01010101u;

// K tiles of 64 columns that so many buckets take: whole bit K tiles.
inline constexpr int kKTilesPerBitKTile = kBitKTileColumns / kKTileColumns;
US_HOST_DEVICE constexpr int64_t FoldKTiles(int64_t buckets) {
  return (buckets + kBitKTileColumns - 1) / kBitKTileColumns * kKTilesPerBitKTile;
}
// Bytes of 64 columns of an M tile.
inline constexpr int kFoldKTileBytes = kBitKTileBytes / kKTilesPerBitKTile;

// Totals of 16-bit integers stay within 32 bits.
inline constexpr int64_t kMaxBuckets = 65536;

// A word from the 16 bits of a lane's two runs of a row, the first column's lowest.
US_HOST_DEVICE constexpr uint32_t PackBitWord(uint32_t first_run, uint32_t second_run) {
  uint32_t word = 0;
  for (int column = 0; column < kRunColumns; ++column) {
    const int unit = column / 4;
    const int byte = column % 4;
    word |= (first_run >> column & 1u) << (8 * byte + unit);
    word |= (second_run >> column & 1u) << (8 * byte + kUnitsPerRun + unit);
  }
  return word;
}

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_FOLD_CUDA_BIT_LAYOUT_H_
