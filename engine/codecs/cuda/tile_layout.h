// How a matrix lies in device memory so that tensor cores can read it as it is: index arithmetic
// shared by the kernels that pack, those that multiply, and the tests. What is multiplied as
// integers lies as engine/codecs/fold/cuda/bit_layout.h says, and grouped/cuda/grouped_product.h.
//
// Uncompressed weights are fp16, multiplied with float sums by mma.sync.m16n8k16 or, on
// compute capability 9.0, wgmma. M are the rows of the weights, N tokens, K columns: an *M tile* is
// 16 rows, a *K tile* 64 columns.
//
//   packed weights   [M tile][K tile][row / 8][column / 32][row % 8][piece of 8 columns, swizzled]
//   packed input     [token][padded column]      fp16 times a power of two, see below
//
// Eight rows of 32 columns are 512 bytes, swizzled in units of 64 as wgmma reads an operand from
// shared memory: piece p of row r is at p ^ (r / 2). mma.sync takes 16 rows by 8 tokens and 16
// columns at a time, of which lane l holds rows l / 4 and l / 4 + 8 of the weights and token l / 4
// of the input, four columns of each. Which columns those are is for us to say as long as weights
// and inputs agree: lane l holds pieces l % 4 and l % 4 + 4 of a K tile, and multiplies half of one
// in each of four instructions. So a warp reads 512 bytes of weights at once.
//
// What is summed in float is summed in *K splits*, runs of columns: within a K split one after the
// other, then the sums of the K splits in ascending order. Every kernel that a device has for a
// codec does so, however it spreads the work, and so a token's result is the same to the bit in
// every batch. There are kNumKSplits K splits of whole K tiles; in products with uncompressed
// weights by wgmma, as dense_product_hopper.h says.
#ifndef ULTRASKETCH_ENGINE_CODECS_CUDA_TILE_LAYOUT_H_
#define ULTRASKETCH_ENGINE_CODECS_CUDA_TILE_LAYOUT_H_

#include <cstdint>

#if defined(__CUDACC__)
#define US_HOST_DEVICE __host__ __device__
#else
#define US_HOST_DEVICE
#endif

namespace ultrasketch::cuda {

inline constexpr int kMTileRows = 16;
inline constexpr int kKTileColumns = 64;
inline constexpr int kInstructionsPerKTile = 4;
inline constexpr int kColumnsPerLane = 16;
inline constexpr int kNumKSplits = 8;

// Bytes of a K tile of one M tile.
inline constexpr int kDenseKTileBytes = kMTileRows * kKTileColumns * 2;

US_HOST_DEVICE constexpr int64_t NumMTiles(int64_t rows) {
  return (rows + kMTileRows - 1) / kMTileRows;
}
US_HOST_DEVICE constexpr int64_t NumKTiles(int64_t columns) {
  return (columns + kKTileColumns - 1) / kKTileColumns;
}

// K tiles [KSplitBegin(c), KSplitBegin(c + 1)) are K split c's. Some K splits of a short row are
// empty.
template <typename KSplit, typename KTiles>
US_HOST_DEVICE constexpr auto KSplitBegin(KSplit k_split, KTiles num_k_tiles) {
  return k_split * num_k_tiles / kNumKSplits;
}

// A packed input is a row of two bytes a column, then a trailer. Rows are a multiple of 16 bytes.
enum class InputForm : int {
  // fp16 numbers, to be multiplied by the trailer's scale, a power of two. It keeps inputs of
  // any size within fp16's range, whose eleven bits of precision are eight times what bfloat16 has.
  kFp16,
  // Integers of 16 bits, to be multiplied by the trailer's scale: 256 * high + low, the two bytes,
  // both signed, apart (hi/lo). The trailer has their total besides.
  kHiLoInt8,
};

// Blocks that may write a token's input together.
inline constexpr int kMaxInputSplits = 8;

struct InputTrailer {
  float scale;
  int32_t unused[3];
  // The sums of the integers that each split of the input wrote; kNotFinite instead when one of
  // them was not a number that integers stand for.
  int32_t totals[kMaxInputSplits];
  int32_t unused_too[4];
};
static_assert(sizeof(InputTrailer) == 64);
inline constexpr int32_t kNotFinite = INT32_MIN;

US_HOST_DEVICE constexpr int64_t PackedInputBytes(int64_t num_k_tiles) {
  return num_k_tiles * kKTileColumns * 2 + static_cast<int64_t>(sizeof(InputTrailer));
}
US_HOST_DEVICE constexpr int64_t PackedScaleOffset(int64_t num_k_tiles) {
  return num_k_tiles * kKTileColumns * 2;
}

// High and low bytes alternate every 128 columns. Where the high byte of a column's integer is; the
// low one is kHiLoBytes later.
inline constexpr int kHiLoBytes = 128;
template <typename Integer>
US_HOST_DEVICE constexpr Integer HighByteOffset(Integer column) {
  return column / kHiLoBytes * (2 * kHiLoBytes) + column % kHiLoBytes;
}
// The most that such an integer can be is 127 * 256 + 127. Inputs are scaled to at most this, so
// that rounding their sums cannot exceed it.
inline constexpr int kLargestInteger = 127 * 256 + 127;
inline constexpr float kScaledRange = 32600.0f;

// --- Within a K tile ---

// A piece is 16 bytes: kPieceColumns columns of fp16.
inline constexpr int kPieceColumns = 8;
inline constexpr int kPiecesPerKTile = kKTileColumns / kPieceColumns;

// Register `reg` (0 to 3) of instruction `instruction` (0 to 3) of mma.sync holds for lane l two
// weights of row l / 4 + 8 * (reg % 2): of this column of the K tile and the one after it.
US_HOST_DEVICE constexpr int LaneColumn(int lane, int instruction, int reg) {
  return (lane % 4 + instruction / 2 * 4) * kPieceColumns + instruction % 2 * 4 + reg / 2 * 2;
}

// The 16 bytes of 512 that have a lane's piece.
US_HOST_DEVICE constexpr int SwizzledPiece(int lane) { return lane ^ (lane / 8); }

// Where the dense weight of a row and column lies, in units of fp16.
US_HOST_DEVICE constexpr int64_t DenseOffset(int64_t row, int64_t column, int64_t num_k_tiles) {
  const int64_t k_tile = row / kMTileRows * num_k_tiles + column / kKTileColumns;
  const int64_t block = row % kMTileRows / 8 * 2 + column % kKTileColumns / 32;
  const int lane = static_cast<int>(row % 8 * 4 + column % 32 / kPieceColumns);
  return k_tile * (kDenseKTileBytes / 2) + (block * 32 + SwizzledPiece(lane)) * kPieceColumns +
         column % kPieceColumns;
}

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_CUDA_TILE_LAYOUT_H_
