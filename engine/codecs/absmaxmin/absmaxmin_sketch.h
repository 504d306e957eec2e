// Insertion into an AbsMaxMin sketch and queries of it, for one output row: the definition.
#ifndef ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_ABSMAXMIN_SKETCH_H_
#define ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_ABSMAXMIN_SKETCH_H_

#include <cstdint>

#include "engine/codecs/absmaxmin/absmaxmin_layout.h"

namespace ultrasketch {

// For each bucket of a class, to minima [the class's num_buckets()], the weight of least magnitude
// among its columns with its sign; of several the one whose place comes first. `weights` [cols] are
// finite.
void InsertMinima(const AbsMaxMinLayout& layout, int64_t class_index, const float* weights,
                  float* minima);

// The level of a bucket of `sketch_class` that holds `value`: value / (step * unit) rounded toward
// zero and clamped to the class's levels, so that |level * unit * step| <= |value| in exact
// arithmetic. `step` is finite and not negative.
int8_t QuantizeLevel(const AbsMaxMinClass& sketch_class, float value, float step);

// Sketches a row: the levels [num_buckets] of all classes.
void InsertRow(const AbsMaxMinLayout& layout, const float* weights, float step, int8_t* levels);

// The decoded row in steps, out [cols]: for each column, of its buckets' levels the one of largest
// magnitude (of several that of the first hash row), times its class's unit. Exact. After InsertRow
// of `weights` with the same step, |out[i] * step| <= |weights[i]|.
void QueryRow(const AbsMaxMinLayout& layout, const int8_t* levels, float* out);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_ABSMAXMIN_SKETCH_H_
