// A linear site as the dense checkpoint has it.
#ifndef ULTRASKETCH_ENGINE_COMPRESS_DENSE_SITE_H_
#define ULTRASKETCH_ENGINE_COMPRESS_DENSE_SITE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

#include "engine/codecs/linear_site.h"
#include "engine/format/checkpoint.h"

namespace ultrasketch {

// Weights and biases as float, in memory of its own.
class DenseSite {
 public:
  // Errors are those of GetTensor and CheckFinite.
  static absl::StatusOr<DenseSite> Read(const LinearSite& site, const Checkpoint& checkpoint);

  const LinearSite& site() const { return site_; }
  const std::vector<float>& weights() const { return weights_; }  // [rows, cols]
  const std::vector<float>& bias() const { return bias_; }        // [rows], or none

 private:
  explicit DenseSite(const LinearSite& site) : site_(site) {}

  LinearSite site_;
  std::vector<float> weights_;
  std::vector<float> bias_;
};

// y [num_tokens, rows] += bias [rows], or nothing when there is none.
void AddBias(absl::Span<const float> bias, int64_t num_tokens, int64_t rows, float* y);

// A tensor of `size` finite values, as float. Errors are those of GetTensor and CheckFinite.
absl::StatusOr<std::vector<float>> ReadVector(const Checkpoint& checkpoint, const std::string& name,
                                              int64_t size);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_COMPRESS_DENSE_SITE_H_
