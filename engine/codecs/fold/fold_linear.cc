#include "engine/codecs/fold/fold_linear.h"

#include <cmath>
#include <utility>

#include "engine/base/check.h"
#include "engine/codecs/fold/fold_cpu_linear.h"

namespace ultrasketch {
namespace {

// Half precision keeps three bits more of a scale than bfloat16 does, where it can hold it.
bool FitHalf(absl::Span<const float> scales) {
  for (const float scale : scales) {
    if (scale != 0.0f && (scale < 0x1p-14f || scale > 65504.0f)) return false;
  }
  return true;
}

}  // namespace

FoldLinear::FoldLinear(LinearSite site, FoldLayout layout)
    : site_(std::move(site)), layout_(std::move(layout)) {
  US_CHECK(layout_.cols() == site_.cols);
  for (const FoldClass& fold_class : layout_.classes()) {
    packed_classes_.push_back(static_cast<uint32_t>(fold_class.num_columns));
    packed_classes_.push_back(static_cast<uint32_t>(fold_class.columns_per_group));
    packed_classes_.push_back(static_cast<uint32_t>(fold_class.planes));
  }
  const std::vector<uint8_t>& column_classes = layout_.column_classes();
  if (column_classes.empty()) return;
  const auto width =
      static_cast<size_t>(ColumnClassBits(static_cast<int64_t>(layout_.classes().size())));
  packed_column_classes_.resize((column_classes.size() * width + 7) / 8, 0);
  for (size_t column = 0; column < column_classes.size(); ++column) {
    const size_t first_bit = column * width;
    packed_column_classes_[first_bit / 8] |=
        static_cast<uint8_t>(column_classes[column] << (first_bit % 8));
  }
}

std::unique_ptr<FoldLinear> FoldLinear::FromParts(const LinearSite& site, FoldLayout layout,
                                                  std::vector<uint8_t> bits,
                                                  absl::Span<const float> scales) {
  std::unique_ptr<FoldLinear> linear(new FoldLinear(site, std::move(layout)));
  US_CHECK(static_cast<int64_t>(bits.size()) == site.rows * linear->row_bytes());
  US_CHECK(static_cast<int64_t>(scales.size()) == site.rows);
  const bool half = FitHalf(scales);
  linear->owned_bits_ = std::move(bits);
  linear->owned_scale_.reserve(scales.size());
  for (const float scale : scales) {
    US_CHECK(std::isfinite(scale) && scale >= 0.0f);
    linear->owned_scale_.push_back(half ? FloatToHalf(scale) : FloatToBf16(scale));
  }
  linear->bits_ = {DType::kU8, {site.rows, linear->row_bytes()}, linear->owned_bits_.data()};
  linear->scale_ = {half ? DType::kF16 : DType::kBF16,
                    {site.rows},
                    reinterpret_cast<const uint8_t*>(linear->owned_scale_.data())};
  return linear;
}

void FoldLinear::DecodeRows(int64_t first_row, int64_t num_rows, float* out) const {
  US_CHECK(first_row >= 0 && num_rows >= 0 && first_row + num_rows <= site_.rows);
  const std::vector<int32_t>& group_of_column = layout_.group_of_column();
  const std::vector<float>& sign_of_column = layout_.sign_of_column();
  std::vector<float> weights(static_cast<size_t>(layout_.groups()));
  for (int64_t row = first_row; row < first_row + num_rows; ++row) {
    float scale = 0.0f;
    CopyToFloat(scale_, row, 1, &scale);
    float* weight = weights.data();
    int64_t bucket = 0;
    for (const FoldClass& fold_class : layout_.classes()) {
      const int64_t num_groups = fold_class.num_groups();
      const float unit = FoldUnit(fold_class.planes);
      for (int64_t group = 0; group < num_groups; ++group) {
        int level = 0;
        for (int64_t plane = 0; plane < fold_class.planes; ++plane) {
          level = 2 * level + (bit(row, bucket + plane * num_groups + group) ? 1 : -1);
        }
        *weight++ = scale * (unit * static_cast<float>(level));
      }
      bucket += fold_class.num_buckets();
    }
    for (size_t column = 0; column < group_of_column.size(); ++column) {
      *out++ = weights[static_cast<size_t>(group_of_column[column])] * sign_of_column[column];
    }
  }
}

std::vector<NamedTensor> FoldLinear::StoredTensors() const {
  std::vector<NamedTensor> tensors = {{site_.name + ".bits", bits_},
                                      {site_.name + ".scale", scale_}};
  tensors.push_back({site_.name + ".classes",
                     {DType::kU32,
                      {static_cast<int64_t>(layout_.classes().size()), 3},
                      reinterpret_cast<const uint8_t*>(packed_classes_.data())}});
  if (!packed_column_classes_.empty()) {
    tensors.push_back({site_.name + ".column_class",
                       {DType::kU8,
                        {static_cast<int64_t>(packed_column_classes_.size())},
                        packed_column_classes_.data()}});
  }
  return tensors;
}

std::unique_ptr<CpuLinear> FoldLinear::PackForCpu() const {
  return std::make_unique<FoldCpuLinear>(*this);
}

int ColumnClassBits(int64_t num_classes) {
  US_CHECK(num_classes >= 1 && num_classes <= kMaxFoldClasses);
  int bits = 1;
  while (num_classes > int64_t{1} << bits) bits *= 2;
  return bits;
}

int64_t FoldStoredBytes(int64_t rows, int64_t cols, int64_t buckets, int64_t num_classes,
                        bool has_column_classes) {
  constexpr int64_t kScaleBytes = 2;
  constexpr int64_t kClassBytes = 3 * sizeof(uint32_t);
  int64_t bytes = rows * ((buckets + 7) / 8 + kScaleBytes) + num_classes * kClassBytes;
  if (has_column_classes) bytes += (cols * ColumnClassBits(num_classes) + 7) / 8;
  return bytes;
}

}  // namespace ultrasketch
