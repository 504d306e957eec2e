#include "engine/codecs/grouped/grouped_cpu_linear.h"

#include <algorithm>

#include "engine/base/check.h"

namespace ultrasketch {
namespace {

GroupedMultiply KernelFor(const GroupedTable& table, const GroupedKernels& kernels) {
  const bool is_half = table.scales().dtype == DType::kF16;
  if (table.type() == GroupedType::kInt8) {
    return is_half ? kernels.multiply_int8_f16 : kernels.multiply_int8_bf16;
  }
  return is_half ? kernels.multiply_int4_f16 : kernels.multiply_int4_bf16;
}

}  // namespace

GroupedCpuLinear::GroupedCpuLinear(const GroupedTable& table, const GroupedKernels& kernels)
    : table_(table), multiply_(KernelFor(table, kernels)) {}

void GroupedCpuLinear::PrepareInput(const float* x, float* prepared) const {
  if (table_.type() == GroupedType::kInt8) {
    if (x != prepared) std::copy_n(x, cols(), prepared);
    std::fill(prepared + cols(), prepared + prepared_width(), 0.0f);
    return;
  }
  for (int64_t first = 0; first < prepared_width(); first += kInt4StepColumns) {
    float step[kInt4StepColumns] = {};
    if (first < cols()) std::copy_n(x + first, std::min(kInt4StepColumns, cols() - first), step);
    for (int64_t i = 0; i < kInt4StepColumns / 2; ++i) {
      prepared[first + i] = step[2 * i];
      prepared[first + kInt4StepColumns / 2 + i] = step[2 * i + 1];
    }
  }
}

void GroupedCpuLinear::Multiply(const float* prepared, int64_t num_tokens, bool accumulate,
                                float* y, ThreadPool& pool) const {
  if (num_tokens == 0) return;
  const int64_t row_bytes = table_.values().shape[1];
  const int64_t scale_bytes = table_.scales().shape[1] * ElementBytes(table_.scales().dtype);
  // 8 rows are what the kernels take at once.
  pool.ParallelFor(rows(), 8, [&](int64_t begin, int64_t end, int) {
    multiply_(table_.values().data + begin * row_bytes, table_.scales().data + begin * scale_bytes,
              end - begin, cols(), prepared, prepared_width(), num_tokens, accumulate, y + begin,
              rows());
  });
}

}  // namespace ultrasketch
