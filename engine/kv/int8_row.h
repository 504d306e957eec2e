// Keys and values of a KV cache as bytes: a token's key, or value, of one head is a row of whole
// multiples of a scale of its own.
#ifndef ULTRASKETCH_ENGINE_KV_INT8_ROW_H_
#define ULTRASKETCH_ENGINE_KV_INT8_ROW_H_

#include <cstdint>

#include "absl/types/span.h"

namespace ultrasketch {

inline constexpr int kMostInt8 = 127;

// Rounds `row` to multiples of a scale, -127 to 127 of them, into `out` [row.size()]. Returns the
// scale as a bfloat16: its largest magnitude over 127, rounded up, so that no entry exceeds 127 of
// it. Rows whose largest magnitude is below 2^-100 are zeros, with a scale of 0. A row with an
// entry that is not finite is zeros with a scale of NaN: what is made of it is NaN, too.
uint16_t RoundToInt8(absl::Span<const float> row, int8_t* out);

// The float that a bfloat16 is.
float ScaleOf(uint16_t bfloat16);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_KV_INT8_ROW_H_
