// Keys and values of a KV cache as binary16.
#ifndef ULTRASKETCH_ENGINE_KV_FP16_ROW_H_
#define ULTRASKETCH_ENGINE_KV_FP16_ROW_H_

#include <cstdint>

#include "absl/types/span.h"

namespace ultrasketch {

// Rounds `row` to the nearest binary16, ties to even, into `out` [row.size()]. Finite numbers
// beyond the largest, 65504, become it: so no finite key or value makes a result infinite.
// Infinities and NaN stay what they are.
void RoundToFp16(absl::Span<const float> row, uint16_t* out);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_KV_FP16_ROW_H_
