// Grouped tables of random numbers.
#ifndef ULTRASKETCH_TESTS_CODECS_GROUPED_GROUPED_EXAMPLES_H_
#define ULTRASKETCH_TESTS_CODECS_GROUPED_GROUPED_EXAMPLES_H_

#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/random.h"
#include "engine/codecs/grouped/grouped_table.h"

namespace ultrasketch {

inline LinearSite TableSite(int64_t rows, int64_t cols) {
  LinearSite site;
  site.name = "model.embed_tokens";
  site.rows = rows;
  site.cols = cols;
  site.members = {{site.name, rows, false}};
  return site;
}

// Every integer that the type can hold, and scales over three powers of ten.
inline std::unique_ptr<GroupedTable> ExampleTable(int64_t rows, int64_t cols, GroupedType type,
                                                  uint64_t stream) {
  std::vector<uint8_t> values(static_cast<size_t>(rows * GroupedRowBytes(type, cols)));
  std::vector<uint16_t> scales(static_cast<size_t>(rows * GroupsInRow(cols)));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<uint8_t>(RandomWord(3, stream, i));
    const bool last_of_row = (static_cast<int64_t>(i) + 1) % GroupedRowBytes(type, cols) == 0;
    if (type == GroupedType::kInt4 && cols % 2 != 0 && last_of_row) values[i] &= 15;
  }
  for (size_t i = 0; i < scales.size(); ++i) {
    scales[i] = FloatToBf16(static_cast<float>(0.01 * std::pow(10.0, NormalDouble(4, stream, i))));
  }
  return GroupedTable::FromParts(TableSite(rows, cols), type, std::move(values), std::move(scales));
}

}  // namespace ultrasketch

#endif  // ULTRASKETCH_TESTS_CODECS_GROUPED_GROUPED_EXAMPLES_H_
