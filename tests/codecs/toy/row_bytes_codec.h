// The example of docs/extending.md: a codec of one byte a weight, with a scale for each row.
#ifndef ULTRASKETCH_TESTS_CODECS_TOY_ROW_BYTES_CODEC_H_
#define ULTRASKETCH_TESTS_CODECS_TOY_ROW_BYTES_CODEC_H_

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "absl/types/span.h"

#include "engine/codecs/codec.h"

namespace ultrasketch {

// W'[r][c] = scale[r] * level[r][c], levels -127 to 127. Stored tensors: "<site>.levels" I8
// [rows, cols] and "<site>.scale" F32 [rows]. Thread-safe.
class RowBytesLinear final : public EncodedLinear {
 public:
  // Views of what somebody else owns; checked by the codec's Load.
  RowBytesLinear(LinearSite site, TensorView levels, TensorView scale);

  // What an encoder would make: each weight on the nearest level.
  static std::unique_ptr<RowBytesLinear> Encode(LinearSite site, absl::Span<const float> weights);

  const LinearSite& site() const override { return site_; }
  std::string_view codec_name() const override { return "row_bytes"; }
  void DecodeRows(int64_t first_row, int64_t num_rows, float* out) const override;
  std::vector<NamedTensor> StoredTensors() const override;
  std::unique_ptr<CpuLinear> PackForCpu() const override;

 private:
  LinearSite site_;
  std::vector<int8_t> own_levels_;  // of Encode
  std::vector<float> own_scales_;
  TensorView levels_;
  TensorView scale_;
};

const Codec& GetRowBytesCodec();

}  // namespace ultrasketch

#endif  // ULTRASKETCH_TESTS_CODECS_TOY_ROW_BYTES_CODEC_H_
