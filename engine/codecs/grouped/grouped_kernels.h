// Products with tables of integers in groups, one implementation per instruction set.
#ifndef ULTRASKETCH_ENGINE_CODECS_GROUPED_GROUPED_KERNELS_H_
#define ULTRASKETCH_ENGINE_CODECS_GROUPED_GROUPED_KERNELS_H_

#include <cstdint>

namespace ultrasketch {

// The 16 bytes of int4 that a kernel takes at once: the low halves are the even columns of these,
// the high halves the odd ones.
inline constexpr int64_t kInt4StepColumns = 32;

// y[t][r] = sum over k of w[r][k] * x[t][k], or added to y, where w is the decoded table, exactly.
// `values` [num_rows, row bytes] and `scales` [num_rows, groups] are as stored, at any alignment; a
// row has `cols` columns. x has x_stride floats between tokens, y y_stride.
//
// x is a whole number of groups long, with zeros after the last column. For int4 each 32 columns
// of it are the even ones, then the odd ones.
//
// Each output is summed in sixteen lanes, each taking its terms in the order of x, and the lanes in
// a fixed tree: the same to the bit for any num_rows and num_tokens.
using GroupedMultiply = void (*)(const uint8_t* values, const uint8_t* scales, int64_t num_rows,
                                 int64_t cols, const float* x, int64_t x_stride, int64_t num_tokens,
                                 bool accumulate, float* y, int64_t y_stride);

struct GroupedKernels {
  const char* name;                    // "avx512", "avx2", "portable"
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
