// An AbsMaxMin sketch packed for the CPU kernels.
#ifndef ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_ABSMAXMIN_CPU_LINEAR_H_
#define ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_ABSMAXMIN_CPU_LINEAR_H_

#include <cstdint>
#include <vector>

#include "engine/codecs/absmaxmin/absmaxmin_kernels.h"
#include "engine/codecs/absmaxmin/absmaxmin_linear.h"
#include "engine/codecs/cpu_linear.h"

namespace ultrasketch {

// A prepared input is the input in the order of the layout's places, each class padded to an even
// number of columns, and rounded: a RoundedInput, then the integers. The weights stay sketched in
// memory: a block of rows at a time is decoded, for all tokens of a call together.
class AbsMaxMinCpuLinear : public CpuLinear {
 public:
  // The result refers to `linear`'s layout.
  explicit AbsMaxMinCpuLinear(const AbsMaxMinLinear& linear,
                              const absmaxmin_internal::AbsMaxMinKernels& kernels =
                                  absmaxmin_internal::GetAbsMaxMinKernels());

  int64_t rows() const override { return static_cast<int64_t>(scales_.size()); }
  int64_t cols() const override { return layout_.cols(); }
  int64_t prepared_width() const override;
  void PrepareInput(const float* x, float* prepared) const override;
  void Multiply(const float* prepared, int64_t num_tokens, bool accumulate, float* y,
                ThreadPool& pool) const override;
  int64_t resident_bytes() const override;

 private:
  // A class as the kernels see it.
  struct Part {
    int64_t num_columns;
    int64_t hash_rows;
    float unit;
    const int32_t* offsets;  // [hash_rows, num_columns]

    int64_t padded_columns() const { return (num_columns + 1) / 2 * 2; }
  };

  void PackRow(int64_t row, const int8_t* levels);
  void UnpackBlock(int64_t block, int16_t* keys) const;
  // sums [num_tokens][rows of a block], zero before; `integers` are the first token's.
  void MultiplyBlock(const int16_t* keys, const int16_t* integers, int64_t integer_stride,
                     int64_t num_tokens, float* sums) const;

  const AbsMaxMinLayout& layout_;
  const absmaxmin_internal::AbsMaxMinKernels& kernels_;
  int64_t words_per_row_ = 0;
  int64_t padded_cols_ = 0;
  std::vector<uint16_t> words_;
  std::vector<float> scales_;
  std::vector<int32_t> offsets_;
  std::vector<Part> parts_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_ABSMAXMIN_CPU_LINEAR_H_
