// A grouped table packed for multiplication on a CPU.
#ifndef ULTRASKETCH_ENGINE_CODECS_GROUPED_GROUPED_CPU_LINEAR_H_
#define ULTRASKETCH_ENGINE_CODECS_GROUPED_GROUPED_CPU_LINEAR_H_

#include <cstdint>

#include "engine/codecs/cpu_linear.h"
#include "engine/codecs/grouped/grouped_kernels.h"
#include "engine/codecs/grouped/grouped_table.h"

namespace ultrasketch {

// Refers to the table, which must outlive it. The prepared input is the input rounded to integers
// of 16 bits, in the order in which the kernels meet its columns (grouped_kernels.h).
class GroupedCpuLinear final : public CpuLinear {
 public:
  // `kernels` are those of another instruction set than the best for tests.
  explicit GroupedCpuLinear(const GroupedTable& table,
                            const GroupedKernels& kernels = GetGroupedKernels());

  int64_t rows() const override { return table_.site().rows; }
  int64_t cols() const override { return table_.site().cols; }
  int64_t prepared_width() const override;
  void PrepareInput(const float* x, float* prepared) const override;
  void Multiply(const float* prepared, int64_t num_tokens, bool accumulate, float* y,
                ThreadPool& pool) const override;
  int64_t resident_bytes() const override { return table_.resident_bytes(); }

 private:
  int64_t padded_cols() const { return GroupsInRow(cols()) * kGroupColumns; }

  const GroupedTable& table_;
  const GroupedKernels& kernels_;
  GroupedMultiply multiply_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_CODECS_GROUPED_GROUPED_CPU_LINEAR_H_
