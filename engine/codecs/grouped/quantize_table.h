// Rounds a table to integers in groups.
#ifndef ULTRASKETCH_ENGINE_CODECS_GROUPED_QUANTIZE_TABLE_H_
#define ULTRASKETCH_ENGINE_CODECS_GROUPED_QUANTIZE_TABLE_H_

#include <cstdint>
#include <memory>

#include "engine/base/thread_pool.h"
#include "engine/codecs/grouped/grouped_table.h"

namespace ultrasketch {

// A group's integers and its scale, as bfloat16.
struct RoundedGroup {
  uint16_t scale = 0;
  int8_t values[kGroupColumns] = {};
};

// Rounds `count` <= 64 finite weights to the nearest multiples of a scale. int8: max|w| / 127.
// int4: of max|w| / 7 and some smaller scales, each refitted by least squares to what it rounds to,
// the one with the least squared error. Weights too small for any bfloat16 scale become zeros.
RoundedGroup RoundGroup(const float* weights, int64_t count, GroupedType type);

// The rounded form of `table`, whose values are finite, at the name of its site. Reads row by row;
// the result does not depend on the number of threads.
std::unique_ptr<GroupedTable> QuantizeTable(const EncodedLinear& table, GroupedType type,
                                            ThreadPool& pool);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_CODECS_GROUPED_QUANTIZE_TABLE_H_
