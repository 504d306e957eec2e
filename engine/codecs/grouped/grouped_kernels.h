// Products with tables of integers in groups, one implementation per instruction set: exact sums
// within a group, the groups in a fixed order, so that all of them give the same bits.
//
// A packed table has strips of 16 rows, one after the other. A strip is its scales,
//
//   uint16 [group][16 rows]                 as stored, with bytes to the next line of the cache
//
// and then its integers, so that a register has the same columns of several rows:
//
//   uint16 [group][steps][16 rows][2]       words of two int8 or four int4, plus 128 or 8, so that
//                                           they are not negative
//
// Word j of a step holds columns j, 2 + j ... of the step, from its low bits on: 4 columns of int8
// to a step, 8 of int4.
//
// What rows and columns that the table does not have hold means nothing: their inputs are 0, or
// their results are not written.
#ifndef ULTRASKETCH_ENGINE_CODECS_GROUPED_GROUPED_KERNELS_H_
#define ULTRASKETCH_ENGINE_CODECS_GROUPED_GROUPED_KERNELS_H_

#include <cstdint>

#include "engine/codecs/rounded_input.h"

namespace ultrasketch {

inline constexpr int64_t kGroupedStripRows = 16;

inline constexpr int32_t kMaxGroupedInteger = 32767;

inline constexpr int64_t kInt8StepColumns = 4;
inline constexpr int64_t kInt4StepColumns = 8;
inline constexpr int32_t kInt8Offset = 128;
inline constexpr int32_t kInt4Offset = 8;

inline constexpr int64_t PackedScaleBytes(int64_t num_groups) {
  return (num_groups * kGroupedStripRows * 2 + 63) / 64 * 64;
}

// Where a token's integers begin: in a line of the cache, if the token does.
inline constexpr int64_t kGroupedIntegersOffset = 64;

// Inputs of several tokens: a RoundedInput each and then, kGroupedIntegersOffset bytes from its
// beginning, int16 [whole groups of columns], with zeros after the last column, and int32 [groups],
// the sum of a group's integers times -kInt8Offset or -kInt4Offset.
struct GroupedInputs {
  const uint8_t* data;
  int64_t stride;  // bytes between tokens
};

// y[t][r] = scale[t] * sum over g of float(sum over k in g of w[r][k] * q[t][k]) * scale[r][g], or
// added to y, for the first num_rows rows of `strips`. y has y_stride floats between tokens. Sums
// over a group are of integers of 32 bits, which cannot overflow, and exact; groups are added as
// floats, in order.
using GroupedMultiply = void (*)(const uint8_t* strips, int64_t num_rows, int64_t num_groups,
                                 GroupedInputs inputs, int64_t num_tokens, bool accumulate,
                                 float* y, int64_t y_stride);

struct GroupedKernels {
  const char* name;  // "avx512", "avx2", "portable"

  // RoundInput of rounded_input.h, with a limit of at most kMaxGroupedInteger.
  RoundedInput (*round)(const float* x, int64_t size, int64_t padded_size, int32_t limit,
                        int16_t* q);

  GroupedMultiply multiply_int8_bf16;  // by type of the values, then of the scales
  GroupedMultiply multiply_int8_f16;
  GroupedMultiply multiply_int4_bf16;
  GroupedMultiply multiply_int4_f16;
};

// The fastest that this processor can run.
const GroupedKernels& GetGroupedKernels();

// Those of a given instruction set; null when this processor cannot run it.
const GroupedKernels* FindGroupedKernels(const char* name);

extern const GroupedKernels kAvx512GroupedKernels;
extern const GroupedKernels kAvx2GroupedKernels;
extern const GroupedKernels kPortableGroupedKernels;

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_CODECS_GROUPED_GROUPED_KERNELS_H_
