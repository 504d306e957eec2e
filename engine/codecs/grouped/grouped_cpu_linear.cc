#include "engine/codecs/grouped/grouped_cpu_linear.h"

#include <algorithm>
#include <cstring>
#include <vector>

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

// Bytes of a prepared token. The same columns of eight tokens are read together: tokens are so far
// apart that these lie in different sets of an L1 cache, whose sets repeat every 4 KiB.
int64_t TokenBytes(int64_t padded_cols) {
  constexpr int64_t kSetsRepeat = 4096;
  constexpr int64_t kApart = 1088;  // or less than a whole number of repetitions by 960
  const int64_t num_bytes = kGroupedIntegersOffset + padded_cols * int64_t{sizeof(int16_t)};
  const int64_t place = num_bytes % kSetsRepeat;
  const int64_t next = place <= kApart                     ? kApart
                       : place <= kApart + kSetsRepeat / 2 ? kApart + kSetsRepeat / 2
                                                           : kApart + kSetsRepeat;
  return num_bytes - place + next;
}

}  // namespace

GroupedCpuLinear::GroupedCpuLinear(const GroupedTable& table, const GroupedKernels& kernels)
    : table_(table), kernels_(kernels), multiply_(KernelFor(table, kernels)) {}

int64_t GroupedCpuLinear::prepared_width() const {
  return TokenBytes(padded_cols()) / static_cast<int64_t>(sizeof(float));
}

void GroupedCpuLinear::PrepareInput(const float* x, float* prepared) const {
  thread_local std::vector<int16_t> integers;
  integers.resize(static_cast<size_t>(padded_cols()));
  const RoundedInput input =
      kernels_.round(x, cols(), padded_cols(), kMaxGroupedInteger, integers.data());
  if (table_.type() == GroupedType::kInt4) {
    for (int64_t first = 0; first < padded_cols(); first += kInt4StepColumns) {
      int16_t* const out = integers.data() + first;
      int16_t step[kInt4StepColumns];
      std::copy_n(out, kInt4StepColumns, step);
      for (int64_t i = 0; i < kInt4StepColumns / 2; ++i) {
        out[i] = step[2 * i];
        out[kInt4StepColumns / 2 + i] = step[2 * i + 1];
      }
    }
  }
  auto* const bytes = reinterpret_cast<uint8_t*>(prepared);
  std::memcpy(bytes, &input, sizeof(input));
  std::memcpy(bytes + kGroupedIntegersOffset, integers.data(), integers.size() * sizeof(int16_t));
}

void GroupedCpuLinear::Multiply(const float* prepared, int64_t num_tokens, bool accumulate,
                                float* y, ThreadPool& pool) const {
  if (num_tokens == 0) return;
  const int64_t row_bytes = table_.values().shape[1];
  const int64_t scale_bytes = table_.scales().shape[1] * ElementBytes(table_.scales().dtype);
  const GroupedInputs inputs = {reinterpret_cast<const uint8_t*>(prepared),
                                prepared_width() * static_cast<int64_t>(sizeof(float))};
  // 16 rows are the most that the kernels take at once.
  pool.ParallelFor(rows(), 16, [&](int64_t begin, int64_t end, int) {
    multiply_(table_.values().data + begin * row_bytes, table_.scales().data + begin * scale_bytes,
              end - begin, cols(), inputs, num_tokens, accumulate, y + begin, rows());
  });
}

}  // namespace ultrasketch
