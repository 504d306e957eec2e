// Keys and values of a KV cache as half bytes: a token's key, or value, of one head is rotated, and
// its rotated numbers are rounded in groups with a scale each.
//
// The rotation is the Hadamard transform of QuaRot (arXiv 2404.00456), after rotary embedding: it
// spreads the few dimensions that are much larger than the others over all, and numbers are nearly
// normal after it. Scores do not change when queries are rotated, too; a weighted sum of rotated
// values is rotated back. The sixteen levels are evenly spaced and none is 0: those of least
// error for normal numbers (Lloyd, Max) cost more perplexity, because few large dimensions make
// many numbers of nearly the largest magnitude.
#ifndef ULTRASKETCH_ENGINE_KV_INT4_ROW_H_
#define ULTRASKETCH_ENGINE_KV_INT4_ROW_H_

#include <cstdint>

#include "absl/types/span.h"

#include "engine/kv/int4_levels.h"

namespace ultrasketch {

// In place, orthogonal and its own inverse: Hadamard transforms of as many neighbouring numbers as
// the largest power of two that divides the row's size.
void RotateRow(absl::Span<float> row);

// Rounds a group of at most kInt4Group numbers to the nearest levels: `codes` [group.size()].
// Returns the scale as a bfloat16 (ScaleOf): its largest magnitude over 15. Groups whose largest
// magnitude is below 2^-100 have a scale of 0, those with an entry that is not finite one of NaN.
uint16_t RoundToInt4(absl::Span<const float> group, uint8_t* codes);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_KV_INT4_ROW_H_
