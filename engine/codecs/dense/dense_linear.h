// A linear site as the checkpoint has it: one matrix for each member.
#ifndef ULTRASKETCH_ENGINE_CODECS_DENSE_DENSE_LINEAR_H_
#define ULTRASKETCH_ENGINE_CODECS_DENSE_DENSE_LINEAR_H_

#include <memory>
#include <string_view>
#include <vector>

#include "engine/codecs/codec.h"

namespace ultrasketch {

// Refers to the source's memory. Thread-safe.
class DenseLinear final : public EncodedLinear {
 public:
  // `members` are parallel to site.members, each "<member>.weight" [member rows, cols].
  DenseLinear(LinearSite site, std::vector<NamedTensor> members);

  const LinearSite& site() const override { return site_; }
  std::string_view codec_name() const override { return "dense"; }
  void DecodeRows(int64_t first_row, int64_t num_rows, float* out) const override;
  std::vector<NamedTensor> StoredTensors() const override { return members_; }
  std::unique_ptr<CpuLinear> PackForCpu() const override;

 private:
  LinearSite site_;
  std::vector<NamedTensor> members_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_CODECS_DENSE_DENSE_LINEAR_H_
