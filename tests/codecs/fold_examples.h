// Random sites of the folding sketch.
#ifndef ULTRASKETCH_TESTS_CODECS_FOLD_EXAMPLES_H_
#define ULTRASKETCH_TESTS_CODECS_FOLD_EXAMPLES_H_

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "engine/base/random.h"
#include "engine/codecs/fold/fold_linear.h"

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

// Random bits and positive scales.
inline std::unique_ptr<FoldLinear> ExampleFold(const LinearSite& site, FoldLayout layout) {
  const int64_t row_bytes = (layout.buckets() + 7) / 8;
  std::vector<uint8_t> bits(static_cast<size_t>(site.rows * row_bytes));
  std::vector<float> scales;
  for (int64_t row = 0; row < site.rows; ++row) {
    for (int64_t bucket = 0; bucket < layout.buckets(); ++bucket) {
      const auto index = static_cast<uint64_t>(row * layout.buckets() + bucket);
      if ((RandomWord(11, 1, index) & 1) != 0) {
        bits[static_cast<size_t>(row * row_bytes + bucket / 8)] |=
            static_cast<uint8_t>(1 << (bucket % 8));
      }
    }
    scales.push_back(static_cast<float>(UniformDouble(11, 2, static_cast<uint64_t>(row))) + 0.01f);
  }
  return FoldLinear::FromParts(site, std::move(layout), std::move(bits), scales);
}

inline std::unique_ptr<FoldLinear> ExampleFold(int64_t rows, int64_t cols, int64_t buckets) {
  const LinearSite site = ExampleSite(rows, cols);
  return ExampleFold(site, FoldLayout(42, site.name, EvenFoldClasses(cols, buckets), {}));
}

inline std::vector<float> RandomFloats(int64_t count, uint64_t stream) {
  std::vector<float> values;
  for (int64_t i = 0; i < count; ++i) {
    values.push_back(static_cast<float>(NormalDouble(5, stream, static_cast<uint64_t>(i))));
  }
  return values;
}

}  // namespace ultrasketch

#endif  // ULTRASKETCH_TESTS_CODECS_FOLD_EXAMPLES_H_
