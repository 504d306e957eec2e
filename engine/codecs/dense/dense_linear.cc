#include "engine/codecs/dense/dense_linear.h"

#include <algorithm>
#include <utility>

#include "engine/base/check.h"
#include "engine/base/resident_memory.h"
#include "engine/codecs/dense/dense_kernels.h"

namespace ultrasketch {
namespace {

DenseMultiply KernelFor(DType dtype) {
  const DenseKernels& kernels = GetDenseKernels();
  switch (dtype) {
    case DType::kF32:
      return kernels.multiply_f32;
    case DType::kBF16:
      return kernels.multiply_bf16;
    case DType::kF16:
      return kernels.multiply_f16;
    default:
      US_CHECK(false && "dense weights are F32, BF16 or F16");
  }
}

// Multiplies with the mapped weights where they are.
class DenseCpuLinear final : public CpuLinear {
 public:
  DenseCpuLinear(const LinearSite& site, const std::vector<NamedTensor>& members)
      : rows_(site.rows), cols_(site.cols) {
    for (const NamedTensor& member : members) {
      const int64_t row_bytes = cols_ * ElementBytes(member.view.dtype);
      parts_.push_back(
          {member.view.data, member.view.shape[0], row_bytes, KernelFor(member.view.dtype)});
    }
  }

  int64_t rows() const override { return rows_; }
  int64_t cols() const override { return cols_; }
  int64_t prepared_width() const override { return cols_; }

  void PrepareInput(const float* x, float* prepared) const override {
    if (x != prepared) std::copy_n(x, cols_, prepared);
  }

  void Multiply(const float* prepared, int64_t num_tokens, bool accumulate, float* y,
                ThreadPool& pool) const override {
    if (num_tokens == 0) return;
    // 8 rows are what the kernels take at once.
    pool.ParallelFor(rows_, 8, [&](int64_t begin, int64_t end, int) {
      int64_t first_row = 0;
      for (const Part& part : parts_) {
        const int64_t from = std::max(begin, first_row);
        const int64_t to = std::min(end, first_row + part.rows);
        if (from < to) {
          part.multiply(part.data + (from - first_row) * part.row_bytes, to - from, cols_, prepared,
                        cols_, num_tokens, accumulate, y + from, rows_);
        }
        first_row += part.rows;
      }
    });
  }

  int64_t resident_bytes() const override {
    int64_t bytes = 0;
    for (const Part& part : parts_) bytes += ResidentBytes(part.data, part.rows * part.row_bytes);
    return bytes;
  }

 private:
  struct Part {
    const uint8_t* data;
    int64_t rows;
    int64_t row_bytes;
    DenseMultiply multiply;
  };

  int64_t rows_;
  int64_t cols_;
  std::vector<Part> parts_;
};

}  // namespace

DenseLinear::DenseLinear(LinearSite site, std::vector<NamedTensor> members)
    : site_(std::move(site)), members_(std::move(members)) {
  US_CHECK(members_.size() == site_.members.size());
}

void DenseLinear::DecodeRows(int64_t first_row, int64_t num_rows, float* out) const {
  US_CHECK(first_row >= 0 && num_rows >= 0 && first_row + num_rows <= site_.rows);
  int64_t member_first = 0;
  for (const NamedTensor& member : members_) {
    const int64_t member_rows = member.view.shape[0];
    const int64_t from = std::max(first_row, member_first);
    const int64_t to = std::min(first_row + num_rows, member_first + member_rows);
    if (from < to) {
      CopyToFloat(member.view, (from - member_first) * site_.cols, (to - from) * site_.cols,
                  out + (from - first_row) * site_.cols);
    }
    member_first += member_rows;
  }
}

std::unique_ptr<CpuLinear> DenseLinear::PackForCpu() const {
  return std::make_unique<DenseCpuLinear>(site_, members_);
}

}  // namespace ultrasketch
