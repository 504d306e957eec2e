// How a matrix lies in device memory so that tensor cores can read it as it is: index arithmetic
// shared by the kernels that pack, those that multiply, and the tests.
//
// All codecs multiply with mma.sync.m16n8k16 (binary16 inputs, float sums): 16 rows of weights by 8
// tokens, 16 columns at a time. A *row tile* is 16 rows; a *step* is 64 columns, that is four of
// those instructions. In the instruction, lane l holds rows l / 4 and l / 4 + 8 of the weights and
// token l / 4 of the input; of each group of 16 columns it holds four, and which columns those are
// is for us to say as long as weights and inputs agree. Here lane l holds the 16 consecutive
// columns [16 * (l % 4), 16 * (l % 4) + 16) of a step, four for each instruction, so that it reads
// them of a token with two 16-byte loads.
//
//   packed weights   [row tile][step][lane]...   one coalesced read a warp, row tile and step
//   prepared input   [token][padded column]      binary16 times a power of two, see below
//
// Columns are summed in kNumChunks chunks of whole steps: within a chunk one after the other, then
// the sums of the chunks in ascending order. Every kernel does so, however it spreads the work, and
// so a token's result is the same to the bit in every batch.
#ifndef ULTRASKETCH_ENGINE_CODECS_CUDA_TILE_LAYOUT_H_
#define ULTRASKETCH_ENGINE_CODECS_CUDA_TILE_LAYOUT_H_

#include <cstdint>

#if defined(__CUDACC__)
#define US_HOST_DEVICE __host__ __device__
#else
#define US_HOST_DEVICE
#endif

namespace ultrasketch::cuda {

inline constexpr int kTileRows = 16;
inline constexpr int kStepColumns = 64;
inline constexpr int kInstructionsPerStep = 4;
inline constexpr int kColumnsPerLane = 16;
inline constexpr int kNumChunks = 8;

// Bytes of a step of one row tile.
inline constexpr int kFoldStepBytes = 32 * 4;        // a 32-bit word a lane
inline constexpr int kDenseStepBytes = 32 * 4 * 16;  // four fragments of 16 bytes a lane

US_HOST_DEVICE constexpr int64_t NumRowTiles(int64_t rows) {
  return (rows + kTileRows - 1) / kTileRows;
}
US_HOST_DEVICE constexpr int64_t NumSteps(int64_t columns) {
  return (columns + kStepColumns - 1) / kStepColumns;
}

// Steps [ChunkBegin(c), ChunkBegin(c + 1)) are chunk c's. Some chunks of a short row are empty.
US_HOST_DEVICE constexpr int64_t ChunkBegin(int64_t chunk, int64_t num_steps) {
  return chunk * num_steps / kNumChunks;
}

// A prepared input: num_steps * kStepColumns binary16 numbers, then a float, the power of two by
// which they are to be multiplied. It keeps inputs of any size within binary16's range, whose
// eleven bits of precision are eight times what bfloat16 has. Rows are a multiple of 16 bytes.
US_HOST_DEVICE constexpr int64_t PreparedRowBytes(int64_t num_steps) {
  return num_steps * kStepColumns * 2 + 16;
}
US_HOST_DEVICE constexpr int64_t PreparedScaleOffset(int64_t num_steps) {
  return num_steps * kStepColumns * 2;
}

// --- Within a step ---

// Register `reg` (0 to 3) of instruction `instruction` (0 to 3) holds for lane l two weights of row
// l / 4 + 8 * (reg % 2): of the lane's columns kLaneColumn and the one after it.
US_HOST_DEVICE constexpr int LaneColumn(int instruction, int reg) {
  return instruction * 4 + reg / 2 * 2;
}

// A lane's word of 32 sign bits, set where the weight is -1. Weight pair p = 4 * instruction + reg
// has its bits at 15 - p and 31 - p: `word << p` brings them to the sign bits of a pair of binary16
// numbers. `low_row` and `high_row` are the lane's 16 columns of its two rows, bit c set for +1.
US_HOST_DEVICE constexpr uint32_t PackFoldWord(uint32_t low_row, uint32_t high_row) {
  uint32_t word = 0;
  for (int instruction = 0; instruction < kInstructionsPerStep; ++instruction) {
    for (int reg = 0; reg < 4; ++reg) {
      const uint32_t row = reg % 2 == 0 ? low_row : high_row;
      const int column = LaneColumn(instruction, reg);
      const int pair = 4 * instruction + reg;
      const uint32_t first_negative = ~(row >> column) & 1u;
      const uint32_t second_negative = ~(row >> (column + 1)) & 1u;
      word |= first_negative << (15 - pair);
      word |= second_negative << (31 - pair);
    }
  }
  return word;
}

// Two binary16 numbers, +1 or -1: weight pair `pair` of a word.
US_HOST_DEVICE constexpr uint32_t UnpackFoldPair(uint32_t word, int pair) {
  return ((word << pair) & 0x80008000u) ^ 0x3c003c00u;
}

// Where the dense weight of a row and column lies, in units of binary16 numbers.
US_HOST_DEVICE constexpr int64_t DenseOffset(int64_t row, int64_t column, int64_t num_steps) {
  const int64_t tile = row / kTileRows;
  const int64_t tile_row = row % kTileRows;
  const int64_t step = column / kStepColumns;
  const int64_t lane = tile_row % 8 * 4 + column % kStepColumns / kColumnsPerLane;
  const int64_t lane_column = column % kColumnsPerLane;
  const int64_t instruction = lane_column / 4;
  const int64_t reg = lane_column % 4 / 2 * 2 + tile_row / 8;
  return (tile * num_steps + step) * (kDenseStepBytes / 2) + instruction * 256 + lane * 8 +
         reg * 2 + lane_column % 2;
}

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_CUDA_TILE_LAYOUT_H_
