// A linear site in the AbsMaxMin sketch's canonical form.
#ifndef ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_ABSMAXMIN_LINEAR_H_
#define ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_ABSMAXMIN_LINEAR_H_

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "absl/types/span.h"

#include "engine/codecs/absmaxmin/absmaxmin_layout.h"
#include "engine/codecs/codec.h"

namespace ultrasketch {

// W'[r][i] = scale[r] * unit(class of i) * the level of largest magnitude among i's buckets in row
// r. What device plug-ins pack from. Thread-safe.
class AbsMaxMinLinear : public EncodedLinear {
 public:
  // From an encoder. `levels` [rows, layout.num_buckets()], within their classes' ranges. `scales`
  // [rows] are finite and not negative; they are rounded toward zero to F16, or to BF16 when one of
  // them is outside F16's normal range: levels that underestimate weights with a step before
  // rounding do so after it. No scale times the largest level may overflow a float.
  static std::unique_ptr<AbsMaxMinLinear> FromParts(const LinearSite& site, AbsMaxMinLayout layout,
                                                    absl::Span<const int8_t> levels,
                                                    absl::Span<const float> scales);

  const LinearSite& site() const override { return site_; }
  std::string_view codec_name() const override { return "absmaxmin"; }
  void DecodeRows(int64_t first_row, int64_t num_rows, float* out) const override;
  std::vector<NamedTensor> StoredTensors() const override;
  std::unique_ptr<CpuLinear> PackForCpu() const override;

  const AbsMaxMinLayout& layout() const { return layout_; }
  // The levels of a row's buckets, levels [layout().num_buckets()].
  void UnpackRow(int64_t row, int8_t* levels) const;
  // The stored scales as float [rows].
  std::vector<float> Scales() const { return ToFloatVector(scale_); }

 private:
  friend class AbsMaxMinCodec;

  AbsMaxMinLinear(LinearSite site, AbsMaxMinLayout layout);

  LinearSite site_;
  AbsMaxMinLayout layout_;
  TensorView sketch_;
  TensorView scale_;
  // The stored forms of layout_.
  std::vector<uint32_t> packed_classes_;
  std::vector<uint8_t> packed_column_classes_;
  // Empty when the views refer to a source.
  std::vector<uint8_t> owned_sketch_;
  std::vector<uint16_t> owned_scale_;
};

// The largest magnitude of a decoded weight in steps.
float LargestMagnitude(absl::Span<const AbsMaxMinClass> classes);

// U32 numbers of a class in "<site>.classes".
inline constexpr int64_t kAbsMaxMinClassEntries = 5;

// Bits of a column's entry in "<site>.column_class": 1, 2 or 4.
int AbsMaxMinColumnClassBits(int64_t num_classes);

// Bytes of all tensors of a site with these extents: what bits per weight (linear) counts.
int64_t AbsMaxMinStoredBytes(int64_t rows, int64_t cols, absl::Span<const AbsMaxMinClass> classes,
                             bool has_column_classes);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_ABSMAXMIN_LINEAR_H_
