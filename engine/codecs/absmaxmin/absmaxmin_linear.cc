#include "engine/codecs/absmaxmin/absmaxmin_linear.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

#include "engine/base/check.h"
#include "engine/codecs/absmaxmin/absmaxmin_cpu_linear.h"
#include "engine/codecs/absmaxmin/absmaxmin_sketch.h"

namespace ultrasketch {
namespace {

// Half precision keeps three bits more of a scale than bfloat16 does, where it can hold it.
bool FitHalf(absl::Span<const float> scales) {
  for (const float scale : scales) {
    if (scale != 0.0f && (scale < 0x1p-14f || scale > 65504.0f)) return false;
  }
  return true;
}

// For scales that are not negative.
uint16_t HalfTowardZero(float scale) {
  const uint16_t nearest = FloatToHalf(scale);
  return HalfToFloat(nearest) > scale ? static_cast<uint16_t>(nearest - 1) : nearest;
}

uint16_t Bf16TowardZero(float scale) {
  return static_cast<uint16_t>(std::bit_cast<uint32_t>(scale) >> 16);
}

// `width` <= 8 bits from `first_bit` on of bytes that end after them.
uint32_t ReadBits(const uint8_t* bytes, int64_t first_bit, int64_t width) {
  const int64_t byte = first_bit / 8;
  const int64_t shift = first_bit % 8;
  uint32_t word = bytes[byte];
  if (shift + width > 8) word |= uint32_t{bytes[byte + 1]} << 8;
  return word >> shift & ((1u << width) - 1);
}

// Sets bits that are zero.
void WriteBits(uint32_t value, int64_t first_bit, int64_t width, uint8_t* bytes) {
  const int64_t byte = first_bit / 8;
  const int64_t shift = first_bit % 8;
  bytes[byte] |= static_cast<uint8_t>(value << shift);
  if (shift + width > 8) bytes[byte + 1] |= static_cast<uint8_t>(value >> (8 - shift));
}

}  // namespace

AbsMaxMinLinear::AbsMaxMinLinear(LinearSite site, AbsMaxMinLayout layout)
    : site_(std::move(site)), layout_(std::move(layout)) {
  US_CHECK(layout_.cols() == site_.cols);
  for (const AbsMaxMinClass& sketch_class : layout_.classes()) {
    for (const int64_t entry :
         {sketch_class.num_columns, sketch_class.buckets, sketch_class.hash_rows, sketch_class.bits,
          sketch_class.unit_exponent}) {
      packed_classes_.push_back(static_cast<uint32_t>(entry));
    }
  }
  const std::vector<uint8_t>& column_classes = layout_.column_classes();
  if (column_classes.empty()) return;
  const int64_t width = AbsMaxMinColumnClassBits(layout_.num_classes());
  packed_column_classes_.resize(static_cast<size_t>((site_.cols * width + 7) / 8), 0);
  for (int64_t column = 0; column < site_.cols; ++column) {
    WriteBits(column_classes[static_cast<size_t>(column)], column * width, width,
              packed_column_classes_.data());
  }
}

std::unique_ptr<AbsMaxMinLinear> AbsMaxMinLinear::FromParts(const LinearSite& site,
                                                            AbsMaxMinLayout layout,
                                                            absl::Span<const int8_t> levels,
                                                            absl::Span<const float> scales) {
  std::unique_ptr<AbsMaxMinLinear> linear(new AbsMaxMinLinear(site, std::move(layout)));
  const AbsMaxMinLayout& own_layout = linear->layout_;
  US_CHECK(static_cast<int64_t>(levels.size()) == site.rows * own_layout.num_buckets());
  US_CHECK(static_cast<int64_t>(scales.size()) == site.rows);

  const int64_t row_bytes = own_layout.row_bytes();
  linear->owned_sketch_.resize(static_cast<size_t>(site.rows * row_bytes), 0);
  const int8_t* level = levels.data();
  for (int64_t row = 0; row < site.rows; ++row) {
    uint8_t* row_sketch = linear->owned_sketch_.data() + row * row_bytes;
    int64_t first_bit = 0;
    for (const AbsMaxMinClass& sketch_class : own_layout.classes()) {
      const uint32_t mask = (1u << sketch_class.bits) - 1;
      for (int64_t k = 0; k < sketch_class.num_buckets(); ++k, ++level) {
        US_CHECK(*level >= sketch_class.least_level() && *level <= sketch_class.largest_level());
        WriteBits(static_cast<uint32_t>(*level) & mask, first_bit, sketch_class.bits, row_sketch);
        first_bit += sketch_class.bits;
      }
    }
  }

  const bool half = FitHalf(scales);
  const float largest_magnitude = LargestMagnitude(own_layout.classes());
  linear->owned_scale_.reserve(scales.size());
  for (const float scale : scales) {
    US_CHECK(scale >= 0.0f && std::isfinite(scale * largest_magnitude));
    linear->owned_scale_.push_back(half ? HalfTowardZero(scale) : Bf16TowardZero(scale));
  }
  linear->sketch_ = {DType::kU8, {site.rows, row_bytes}, linear->owned_sketch_.data()};
  linear->scale_ = {half ? DType::kF16 : DType::kBF16,
                    {site.rows},
                    reinterpret_cast<const uint8_t*>(linear->owned_scale_.data())};
  return linear;
}

void AbsMaxMinLinear::UnpackRow(int64_t row, int8_t* levels) const {
  US_CHECK(row >= 0 && row < site_.rows);
  const uint8_t* row_sketch = sketch_.data + row * layout_.row_bytes();
  int64_t first_bit = 0;
  for (const AbsMaxMinClass& sketch_class : layout_.classes()) {
    const auto sign_bit = static_cast<int32_t>(1) << (sketch_class.bits - 1);
    for (int64_t k = 0; k < sketch_class.num_buckets(); ++k) {
      const auto code = static_cast<int32_t>(ReadBits(row_sketch, first_bit, sketch_class.bits));
      *levels++ = static_cast<int8_t>((code ^ sign_bit) - sign_bit);
      first_bit += sketch_class.bits;
    }
  }
}

void AbsMaxMinLinear::DecodeRows(int64_t first_row, int64_t num_rows, float* out) const {
  US_CHECK(first_row >= 0 && num_rows >= 0 && first_row + num_rows <= site_.rows);
  std::vector<int8_t> levels(static_cast<size_t>(layout_.num_buckets()));
  for (int64_t row = first_row; row < first_row + num_rows; ++row, out += site_.cols) {
    UnpackRow(row, levels.data());
    QueryRow(layout_, levels.data(), out);
    float scale = 0.0f;
    CopyToFloat(scale_, row, 1, &scale);
    for (int64_t column = 0; column < site_.cols; ++column) out[column] *= scale;
  }
}

std::vector<NamedTensor> AbsMaxMinLinear::StoredTensors() const {
  std::vector<NamedTensor> tensors = {{site_.name + ".sketch", sketch_},
                                      {site_.name + ".scale", scale_},
                                      {site_.name + ".classes",
                                       {DType::kU32,
                                        {layout_.num_classes(), kAbsMaxMinClassEntries},
                                        reinterpret_cast<const uint8_t*>(packed_classes_.data())}}};
  if (!packed_column_classes_.empty()) {
    tensors.push_back({site_.name + ".column_class",
                       {DType::kU8,
                        {static_cast<int64_t>(packed_column_classes_.size())},
                        packed_column_classes_.data()}});
  }
  return tensors;
}

std::unique_ptr<CpuLinear> AbsMaxMinLinear::PackForCpu() const {
  return std::make_unique<AbsMaxMinCpuLinear>(*this);
}

float LargestMagnitude(absl::Span<const AbsMaxMinClass> classes) {
  float largest = 0.0f;
  for (const AbsMaxMinClass& sketch_class : classes) {
    largest =
        std::max(largest, sketch_class.unit() * -static_cast<float>(sketch_class.least_level()));
  }
  return largest;
}

int AbsMaxMinColumnClassBits(int64_t num_classes) {
  US_CHECK(num_classes >= 1 && num_classes <= kMaxAbsMaxMinClasses);
  int bits = 1;
  while (num_classes > int64_t{1} << bits) bits *= 2;
  return bits;
}

int64_t AbsMaxMinStoredBytes(int64_t rows, int64_t cols, absl::Span<const AbsMaxMinClass> classes,
                             bool has_column_classes) {
  constexpr int64_t kScaleBytes = 2;
  const auto num_classes = static_cast<int64_t>(classes.size());
  int64_t row_bits = 0;
  for (const AbsMaxMinClass& sketch_class : classes) row_bits += sketch_class.num_bits();
  int64_t bytes = rows * ((row_bits + 7) / 8 + kScaleBytes) +
                  num_classes * kAbsMaxMinClassEntries * static_cast<int64_t>(sizeof(uint32_t));
  if (has_column_classes) bytes += (cols * AbsMaxMinColumnClassBits(num_classes) + 7) / 8;
  return bytes;
}

}  // namespace ultrasketch
