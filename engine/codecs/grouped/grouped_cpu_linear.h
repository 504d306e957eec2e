// A grouped table packed for multiplication on a CPU.
#ifndef ULTRASKETCH_ENGINE_CODECS_GROUPED_GROUPED_CPU_LINEAR_H_
#define ULTRASKETCH_ENGINE_CODECS_GROUPED_GROUPED_CPU_LINEAR_H_

#include <cstdint>

#include "engine/codecs/cpu_linear.h"
#include "engine/codecs/grouped/grouped_kernels.h"
#include "engine/codecs/grouped/grouped_table.h"

namespace ultrasketch {

// Refers to the table, which must outlive it. The prepared input is the input in the order in which
// the kernels meet its columns (grouped_kernels.h), with zeros after the last column.
class GroupedCpuLinear final : public CpuLinear {
 public:
  // `kernels` are those of another instruction set than the best for tests.
  explicit GroupedCpuLinear(const GroupedTable& table,
                            const GroupedKernels& kernels = GetGroupedKernels());

  int64_t rows() const override { return table_.site().rows; }
  int64_t cols() const override { return table_.site().cols; }
  int64_t prepared_width() const override { return GroupsInRow(cols()) * kGroupColumns; }
  void PrepareInput(const float* x, float* prepared) const override;
  void Multiply(const float* prepared, int64_t num_tokens, bool accumulate, float* y,
                ThreadPool& pool) const override;
  int64_t resident_bytes() const override { return table_.resident_bytes(); }

 private:
  const GroupedTable& table_;
  GroupedMultiply multiply_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_CODECS_GROUPED_GROUPED_CPU_LINEAR_H_
