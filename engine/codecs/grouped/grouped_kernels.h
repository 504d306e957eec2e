// Products with tables of integers in groups, one implementation per instruction set: exact sums
// within a group, the groups in a fixed order, so that all of them give the same bits.
#ifndef ULTRASKETCH_ENGINE_CODECS_GROUPED_GROUPED_KERNELS_H_
#define ULTRASKETCH_ENGINE_CODECS_GROUPED_GROUPED_KERNELS_H_

#include <cstdint>

#include "engine/codecs/rounded_input.h"

namespace ultrasketch {

// The 16 bytes of int4 that a kernel takes at once: the low halves are the even columns of these,
// the high halves the odd ones.
inline constexpr int64_t kInt4StepColumns = 32;

inline constexpr int32_t kMaxGroupedInteger = 32767;

// Where a token's integers begin: in a line of the cache, if the token does.
inline constexpr int64_t kGroupedIntegersOffset = 64;

// Inputs of several tokens: a RoundedInput each and then, kGroupedIntegersOffset bytes from its
// beginning, int16 [whole groups of columns], with zeros after the last column. For int4 each 32
// columns of it are the even ones, then the odd ones.
struct GroupedInputs {
  const uint8_t* data;
  int64_t stride;  // bytes between tokens
};

// y[t][r] = scale[t] * sum over k of w[r][k] * q[t][k], or added to y, where w is the decoded
// table. `values` [num_rows, row bytes] and `scales` [num_rows, groups] are as stored, at any
// alignment; a row has `cols` columns. y has y_stride floats between tokens.
//
// Products of a group are summed as integers in eight lanes, lane l those k with k / 2 % 8 == l in
// the order of the input. The lanes of the groups, each times its scale, are added up as floats in
// order of groups, and the lanes in a tree: l with l + 4, l + 2, l + 1.
using GroupedMultiply = void (*)(const uint8_t* values, const uint8_t* scales, int64_t num_rows,
                                 int64_t cols, GroupedInputs inputs, int64_t num_tokens,
                                 bool accumulate, float* y, int64_t y_stride);

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
