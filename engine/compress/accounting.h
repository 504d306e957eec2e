// How large a model is, per weight.
#ifndef ULTRASKETCH_ENGINE_COMPRESS_ACCOUNTING_H_
#define ULTRASKETCH_ENGINE_COMPRESS_ACCOUNTING_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

#include "engine/codecs/linear_site.h"
#include "engine/format/checkpoint.h"

namespace ultrasketch {

struct SiteSize {
  LinearSite site;
  std::string codec;
  int64_t bytes = 0;  // of all tensors that stand in for the site's weights
  double bits_per_weight = 0;
};

// The token embedding, or an output head of its own.
struct TableSize {
  std::string name;
  std::string type;   // "int8", "int4", or the dense tensor's: "BF16", "F16", "F32"
  int64_t bytes = 0;  // stored
};

struct ModelSize {
  int64_t parameters = 0;      // of the uncompressed model, embeddings included
  int64_t linear_weights = 0;  // of the uncompressed model's linear sites, biases excluded
  int64_t linear_bytes = 0;    // of the tensors that stand in for them
  int64_t file_bytes = 0;      // of all files of the model
  // linear_bytes * 8 / linear_weights: weights, scales, side data and padding.
  double bits_per_weight_linear = 0;
  // file_bytes * 8 / parameters.
  double bits_per_weight_file = 0;
  std::vector<SiteSize> sites;  // in order of execution
  std::vector<TableSize> tables;
};

// The sizes of a checkpoint, dense or compressed. Loads and so validates every linear site and
// table, and looks for every norm and bias: errors are those of Codec::Load, LoadVocabularyTables
// and GetTensor.
absl::StatusOr<ModelSize> MeasureModel(const Checkpoint& checkpoint);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_COMPRESS_ACCOUNTING_H_
