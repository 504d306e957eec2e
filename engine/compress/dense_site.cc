#include "engine/compress/dense_site.h"

#include "engine/base/status.h"
#include "engine/compress/site_moments.h"

namespace ultrasketch {

absl::StatusOr<DenseSite> DenseSite::Read(const LinearSite& site, const Checkpoint& checkpoint) {
  DenseSite dense(site);
  US_ASSIGN_OR_RETURN(dense.weights_, ReadSiteWeights(site, checkpoint));
  US_ASSIGN_OR_RETURN(dense.bias_, LoadBias(site, checkpoint));
  return dense;
}

void AddBias(absl::Span<const float> bias, int64_t num_tokens, int64_t rows, float* y) {
  if (bias.empty()) return;
  for (int64_t token = 0; token < num_tokens; ++token) {
    for (int64_t row = 0; row < rows; ++row)
      y[token * rows + row] += bias[static_cast<size_t>(row)];
  }
}

absl::StatusOr<std::vector<float>> ReadVector(const Checkpoint& checkpoint, const std::string& name,
                                              int64_t size) {
  US_ASSIGN_OR_RETURN(const TensorView view, GetTensor(checkpoint, name, {}, {size}));
  US_RETURN_IF_ERROR(CheckFinite(checkpoint, name, view));
  return ToFloatVector(view);
}

}  // namespace ultrasketch
