// Random sites of the AbsMaxMin sketch.
#ifndef ULTRASKETCH_TESTS_CODECS_ABSMAXMIN_ABSMAXMIN_EXAMPLES_H_
#define ULTRASKETCH_TESTS_CODECS_ABSMAXMIN_ABSMAXMIN_EXAMPLES_H_

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "engine/base/random.h"
#include "engine/codecs/absmaxmin/absmaxmin_linear.h"

namespace ultrasketch {

inline LinearSite ExampleSite(int64_t rows, int64_t cols) {
  LinearSite site;
  site.name = "model.layers.3.mlp_input";
  site.kind = SiteKind::kMlpInput;
  site.layer = 3;
  site.rows = rows;
  site.cols = cols;
  site.members = {{"model.layers.3.mlp.gate_proj", rows, false}};
  return site;
}

// Random levels, all of the range, and positive scales.
inline std::unique_ptr<AbsMaxMinLinear> ExampleSketch(const LinearSite& site,
                                                      AbsMaxMinLayout layout) {
  std::vector<int8_t> levels;
  std::vector<float> scales;
  for (int64_t row = 0; row < site.rows; ++row) {
    for (const AbsMaxMinClass& sketch_class : layout.classes()) {
      for (int64_t bucket = 0; bucket < sketch_class.num_buckets(); ++bucket) {
        const uint64_t word = RandomWord(11, 1, levels.size()) >> 20;
        levels.push_back(
            static_cast<int8_t>(static_cast<int64_t>(word & ((1u << sketch_class.bits) - 1)) +
                                sketch_class.least_level()));
      }
    }
    scales.push_back(static_cast<float>(UniformDouble(11, 2, static_cast<uint64_t>(row))) + 0.01f);
  }
  return AbsMaxMinLinear::FromParts(site, std::move(layout), levels, scales);
}

inline std::unique_ptr<AbsMaxMinLinear> ExampleSketch(int64_t rows, int64_t cols,
                                                      std::vector<AbsMaxMinClass> classes) {
  const LinearSite site = ExampleSite(rows, cols);
  return ExampleSketch(site, AbsMaxMinLayout(42, site.name, std::move(classes), {}));
}

// Three classes, dealt to 27 columns by importance: 15 bits + 24 bits + 18 bits of a row.
inline std::unique_ptr<AbsMaxMinLinear> ExampleWithImportance(int64_t rows) {
  const LinearSite site = ExampleSite(rows, 27);
  std::vector<uint8_t> column_classes(27, 2);
  for (const size_t column : {0u, 5u, 26u}) column_classes[column] = 0;
  for (const size_t column : {1u, 2u, 3u, 7u, 12u, 20u}) column_classes[column] = 1;
  return ExampleSketch(
      site, AbsMaxMinLayout(42, site.name, {{3, 3, 1, 5, 0}, {6, 4, 2, 3, 1}, {18, 3, 3, 2, 4}},
                            column_classes));
}

inline std::vector<float> RandomFloats(int64_t count, uint64_t stream) {
  std::vector<float> values;
  for (int64_t i = 0; i < count; ++i) {
    values.push_back(static_cast<float>(NormalDouble(5, stream, static_cast<uint64_t>(i))));
  }
  return values;
}

}  // namespace ultrasketch

#endif  // ULTRASKETCH_TESTS_CODECS_ABSMAXMIN_ABSMAXMIN_EXAMPLES_H_
