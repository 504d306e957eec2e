// A grouped table packed for multiplication on a CPU.
#ifndef ULTRASKETCH_ENGINE_CODECS_GROUPED_GROUPED_CPU_LINEAR_H_
#define ULTRASKETCH_ENGINE_CODECS_GROUPED_GROUPED_CPU_LINEAR_H_

#include <cstdint>

#include "engine/base/large_vector.h"
#include "engine/codecs/cpu_linear.h"
#include "engine/codecs/grouped/grouped_kernels.h"
#include "engine/codecs/grouped/grouped_table.h"

namespace ultrasketch {

// A copy of the table in the order in which the kernels read it (grouped_kernels.h), of the same
// size. The prepared input is the input rounded to integers of 16 bits.
class GroupedCpuLinear final : public CpuLinear {
 public:
  // `kernels` are those of another instruction set than the best for tests.
  explicit GroupedCpuLinear(const GroupedTable& table,
                            const GroupedKernels& kernels = GetGroupedKernels());

  int64_t rows() const override { return rows_; }
  int64_t cols() const override { return cols_; }
  int64_t prepared_width() const override;
  void PrepareInput(const float* x, float* prepared) const override;
  void Multiply(const float* prepared, int64_t num_tokens, bool accumulate, float* y,
                ThreadPool& pool) const override;
  int64_t resident_bytes() const override { return static_cast<int64_t>(strips_.size()); }

 private:
  int64_t num_groups() const { return GroupsInRow(cols_); }
  int64_t padded_cols() const { return num_groups() * kGroupColumns; }
  int64_t num_strips() const { return (rows_ + kGroupedStripRows - 1) / kGroupedStripRows; }
  int64_t strip_bytes() const { return static_cast<int64_t>(strips_.size()) / num_strips(); }

  const GroupedKernels& kernels_;
  GroupedType type_;
  int64_t rows_;
  int64_t cols_;
  GroupedMultiply multiply_;
  LargeVector<uint8_t> strips_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_CODECS_GROUPED_GROUPED_CPU_LINEAR_H_
