#include "tests/codecs/toy/row_bytes_codec.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "nlohmann/json.hpp"

#include "engine/base/check.h"
#include "engine/base/status.h"

namespace ultrasketch {
namespace {

// Multiplies with the levels as they lie in the file.
class RowBytesCpuLinear final : public CpuLinear {
 public:
  RowBytesCpuLinear(const RowBytesLinear& encoded, const int8_t* levels, std::vector<float> scales)
      : encoded_(encoded), levels_(levels), scales_(std::move(scales)) {}

  int64_t rows() const override { return encoded_.site().rows; }
  int64_t cols() const override { return encoded_.site().cols; }
  int64_t prepared_width() const override { return cols(); }

  void PrepareInput(const float* x, float* prepared) const override {
    if (x != prepared) std::copy_n(x, cols(), prepared);
  }

  // Each output is one sum from the first column to the last: the same in every batch.
  void Multiply(const float* prepared, int64_t num_tokens, bool accumulate, float* y,
                ThreadPool& pool) const override {
    pool.ParallelFor(rows(), 8, [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) {
        const int8_t* const levels = levels_ + row * cols();
        for (int64_t token = 0; token < num_tokens; ++token) {
          const float* const x = prepared + token * cols();
          float sum = 0;
          for (int64_t col = 0; col < cols(); ++col)
            sum += static_cast<float>(levels[col]) * x[col];
          float& out = y[token * rows() + row];
          out = (accumulate ? out : 0.0f) + scales_[static_cast<size_t>(row)] * sum;
        }
      }
    });
  }

  int64_t resident_bytes() const override { return encoded_.resident_bytes(); }

 private:
  const RowBytesLinear& encoded_;
  const int8_t* levels_;
  std::vector<float> scales_;
};

class RowBytesCodec final : public Codec {
 public:
  std::string_view name() const override { return "row_bytes"; }

  absl::StatusOr<std::unique_ptr<EncodedLinear>> Load(
      const LinearSite& site, const TensorSource& source,
      const nlohmann::json& /*parameters*/) const override {
    const std::string scale_name = site.name + ".scale";
    US_ASSIGN_OR_RETURN(TensorView levels, GetTensor(source, site.name + ".levels", {DType::kI8},
                                                     {site.rows, site.cols}));
    US_ASSIGN_OR_RETURN(TensorView scale,
                        GetTensor(source, scale_name, {DType::kF32}, {site.rows}));
    US_RETURN_IF_ERROR(CheckFinite(source, scale_name, scale));
    return std::make_unique<RowBytesLinear>(site, std::move(levels), std::move(scale));
  }
};

}  // namespace

RowBytesLinear::RowBytesLinear(LinearSite site, TensorView levels, TensorView scale)
    : site_(std::move(site)), levels_(std::move(levels)), scale_(std::move(scale)) {}

std::unique_ptr<RowBytesLinear> RowBytesLinear::Encode(LinearSite site,
                                                       absl::Span<const float> weights) {
  const int64_t rows = site.rows, cols = site.cols;
  US_CHECK(std::ssize(weights) == rows * cols);
  auto encoded = std::make_unique<RowBytesLinear>(std::move(site), TensorView{}, TensorView{});
  for (int64_t row = 0; row < rows; ++row) {
    const auto in_row = weights.subspan(static_cast<size_t>(row * cols), static_cast<size_t>(cols));
    float largest = 0;
    for (const float weight : in_row) largest = std::max(largest, std::abs(weight));
    const float scale = largest / 127;
    encoded->own_scales_.push_back(scale);
    for (const float weight : in_row) {
      encoded->own_levels_.push_back(scale > 0 ? static_cast<int8_t>(std::lround(weight / scale))
                                               : int8_t{0});
    }
  }
  encoded->levels_ = {
      DType::kI8, {rows, cols}, reinterpret_cast<const uint8_t*>(encoded->own_levels_.data())};
  encoded->scale_ = {
      DType::kF32, {rows}, reinterpret_cast<const uint8_t*>(encoded->own_scales_.data())};
  return encoded;
}

void RowBytesLinear::DecodeRows(int64_t first_row, int64_t num_rows, float* out) const {
  US_CHECK(first_row >= 0 && num_rows >= 0 && first_row + num_rows <= site_.rows);
  const auto* const levels = reinterpret_cast<const int8_t*>(levels_.data);
  for (int64_t row = first_row; row < first_row + num_rows; ++row) {
    float scale = 0;
    CopyToFloat(scale_, row, 1, &scale);
    for (int64_t col = 0; col < site_.cols; ++col) {
      *out++ = scale * static_cast<float>(levels[row * site_.cols + col]);
    }
  }
}

std::vector<NamedTensor> RowBytesLinear::StoredTensors() const {
  return {{site_.name + ".levels", levels_}, {site_.name + ".scale", scale_}};
}

std::unique_ptr<CpuLinear> RowBytesLinear::PackForCpu() const {
  return std::make_unique<RowBytesCpuLinear>(*this, reinterpret_cast<const int8_t*>(levels_.data),
                                             ToFloatVector(scale_));
}

const Codec& GetRowBytesCodec() {
  static const RowBytesCodec codec;
  return codec;
}

}  // namespace ultrasketch
