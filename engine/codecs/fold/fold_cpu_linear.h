// The folding sketch packed for the CPU kernels.
#ifndef ULTRASKETCH_ENGINE_CODECS_FOLD_FOLD_CPU_LINEAR_H_
#define ULTRASKETCH_ENGINE_CODECS_FOLD_FOLD_CPU_LINEAR_H_

#include <cstdint>
#include <vector>

#include "engine/codecs/cpu_linear.h"
#include "engine/codecs/fold/fold_kernels.h"
#include "engine/codecs/fold/fold_linear.h"

namespace ultrasketch {

// A prepared input is the sketch z, padded with zeros to whole words of 32 buckets.
class FoldCpuLinear : public CpuLinear {
 public:
  // The result refers to `linear`'s layout. `kernels` is one of AvailableFoldKernels(), null for
  // the fastest.
  explicit FoldCpuLinear(const FoldLinear& linear,
                         const fold_internal::FoldKernels* kernels = nullptr);

  int64_t rows() const override { return rows_; }
  int64_t cols() const override { return layout_.cols(); }
  int64_t prepared_width() const override { return num_words_ * fold_internal::kBucketsPerWord; }
  void PrepareInput(const float* x, float* prepared) const override;
  void Multiply(const float* prepared, int64_t num_tokens, bool accumulate, float* y,
                ThreadPool& pool) const override;
  int64_t resident_bytes() const override;

 private:
  int64_t num_superblocks() const;
  int64_t BlocksOf(int64_t superblock) const;
  void MultiplySuperblock(int64_t superblock, const float* tables, int64_t num_tokens,
                          bool accumulate, float* y) const;

  const FoldLayout& layout_;
  const fold_internal::FoldKernels& kernels_;
  int64_t rows_;
  int64_t num_words_;
  std::vector<uint32_t> words_;
  std::vector<float> scales_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_CODECS_FOLD_FOLD_CPU_LINEAR_H_
