// A linear site in the folding sketch's canonical form.
#ifndef ULTRASKETCH_ENGINE_CODECS_FOLD_FOLD_LINEAR_H_
#define ULTRASKETCH_ENGINE_CODECS_FOLD_FOLD_LINEAR_H_

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "absl/types/span.h"

#include "engine/codecs/codec.h"
#include "engine/codecs/fold/fold_layout.h"

namespace ultrasketch {

// W'[r][i] = scale[r] * sign(i) * sum over the buckets k of i's group of weight(k) * bit[r][k].
// What device plug-ins pack from. Thread-safe.
class FoldLinear : public EncodedLinear {
 public:
  // From an encoder. `bits` is [rows, row_bytes]: bucket k of a row is bit k % 8 (0 the least
  // significant) of byte k / 8, set for +1; the bits after the last bucket are zero. `scales`
  // [rows] are finite and not negative; they are rounded to F16, or to BF16 when one of them is
  // outside F16's normal range.
  static std::unique_ptr<FoldLinear> FromParts(const LinearSite& site, FoldLayout layout,
                                               std::vector<uint8_t> bits,
                                               absl::Span<const float> scales);

  const LinearSite& site() const override { return site_; }
  std::string_view codec_name() const override { return "fold"; }
  void DecodeRows(int64_t first_row, int64_t num_rows, float* out) const override;
  std::vector<NamedTensor> StoredTensors() const override;
  std::unique_ptr<CpuLinear> PackForCpu() const override;

  const FoldLayout& layout() const { return layout_; }
  int64_t row_bytes() const { return (layout_.buckets() + 7) / 8; }
  // [rows, row_bytes]
  const uint8_t* bits() const { return bits_.data; }
  bool bit(int64_t row, int64_t bucket) const {
    return (bits_.data[row * row_bytes() + bucket / 8] >> (bucket % 8) & 1) != 0;
  }
  // The stored scales as float [rows].
  std::vector<float> Scales() const { return ToFloatVector(scale_); }

 private:
  friend class FoldCodec;

  FoldLinear(LinearSite site, FoldLayout layout);

  LinearSite site_;
  FoldLayout layout_;
  TensorView bits_;
  TensorView scale_;
  // The stored forms of layout_.
  std::vector<uint32_t> packed_classes_;
  std::vector<uint8_t> packed_column_classes_;
  // Empty when the views refer to a source.
  std::vector<uint8_t> owned_bits_;
  std::vector<uint16_t> owned_scale_;
};

// Bits of a column's entry in "<site>.column_class": 1, 2, 4 or 8.
int ColumnClassBits(int64_t num_classes);

// Bytes of all tensors of a site with these extents: what bits per weight (linear) counts.
int64_t FoldStoredBytes(int64_t rows, int64_t cols, int64_t buckets, int64_t num_classes,
                        bool has_column_classes);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_CODECS_FOLD_FOLD_LINEAR_H_
