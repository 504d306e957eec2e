// The folding sketch packed for the CPU kernels.
#ifndef ULTRASKETCH_ENGINE_CODECS_FOLD_FOLD_CPU_LINEAR_H_
#define ULTRASKETCH_ENGINE_CODECS_FOLD_FOLD_CPU_LINEAR_H_

#include <cstdint>
#include <vector>

#include "engine/base/large_vector.h"
#include "engine/codecs/cpu_linear.h"
#include "engine/codecs/fold/fold_kernels.h"
#include "engine/codecs/fold/fold_linear.h"

namespace ultrasketch {

// A prepared input is the sketch z rounded to integers (rounded_input.h): a RoundedInput, then
// int16 [padded buckets]. What is lost is at most half of the largest |z| / 4095 a bucket; sums are
// exact from there on.
class FoldCpuLinear : public CpuLinear {
 public:
  // The result refers to `linear`'s layout. `kernels` are those of another instruction set than the
  // best for tests.
  explicit FoldCpuLinear(const FoldLinear& linear, const fold_internal::FoldKernels& kernels =
                                                       fold_internal::GetFoldKernels());

  int64_t rows() const override { return rows_; }
  int64_t cols() const override { return layout_.cols(); }
  int64_t prepared_width() const override;
  void PrepareInput(const float* x, float* prepared) const override;
  void Multiply(const float* prepared, int64_t num_tokens, bool accumulate, float* y,
                ThreadPool& pool) const override;
  int64_t resident_bytes() const override;

 private:
  struct TokenTile;

  int64_t padded_buckets() const { return row_bytes_ * fold_internal::kBucketsPerByte; }
  int64_t num_row_tiles() const;
  // Tokens whose tables are used together.
  int64_t MaxTileTokens() const;
  // Reads the prepared inputs of tokens [first_token, first_token + num_tokens).
  void BuildTables(const float* prepared, int64_t first_token, int64_t num_tokens,
                   TokenTile& tile) const;
  void MultiplyRows(int64_t row_tile, TokenTile& tile, bool accumulate, float* y) const;

  const FoldLayout& layout_;
  const fold_internal::FoldKernels& kernels_;
  int64_t rows_;
  int64_t row_bytes_;
  LargeVector<uint8_t> bits_;  // [row tiles][row_bytes_][kRowsPerTile]
  std::vector<float> scales_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_CODECS_FOLD_FOLD_CPU_LINEAR_H_
