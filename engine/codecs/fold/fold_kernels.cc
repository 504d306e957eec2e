#include "engine/codecs/fold/fold_kernels.h"

#include <algorithm>

namespace ultrasketch::fold_internal {
namespace {

void BuildTables(const float* z, int64_t num_words, float* tables) {
  for (int64_t group = 0; group < num_words * kGroupsPerWord; ++group) {
    const float* values = z + group * 4;
    float* table = tables + group * kTableEntries;
    for (int64_t entry = 0; entry < kTableEntries; ++entry) {
      const float low =
          ((entry & 1) != 0 ? values[0] : -values[0]) + ((entry & 2) != 0 ? values[1] : -values[1]);
      const float high =
          ((entry & 4) != 0 ? values[2] : -values[2]) + ((entry & 8) != 0 ? values[3] : -values[3]);
      table[entry] = low + high;
    }
  }
}

void Multiply(const uint32_t* words, int64_t num_words, int64_t num_blocks, const float* tables,
              int64_t table_stride, int64_t num_tokens, float* sums) {
  for (int64_t token = 0; token < num_tokens; ++token) {
    for (int64_t block = 0; block < num_blocks; ++block) {
      float block_sums[kRowsPerBlock] = {};
      const float* table = tables + token * table_stride;
      for (int64_t word = 0; word < num_words; ++word) {
        const uint32_t* row_words = words + (word * num_blocks + block) * kRowsPerBlock;
        for (int64_t group = 0; group < kGroupsPerWord; ++group, table += kTableEntries) {
          for (int64_t row = 0; row < kRowsPerBlock; ++row) {
            block_sums[row] += table[row_words[row] >> (4 * group) & 15];
          }
        }
      }
      std::copy_n(block_sums, kRowsPerBlock, sums + (token * num_blocks + block) * kRowsPerBlock);
    }
  }
}

std::vector<const FoldKernels*> FindKernels() {
  std::vector<const FoldKernels*> kernels;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")) {
    kernels.push_back(&kAvx512FoldKernels);
  }
  if (__builtin_cpu_supports("avx2")) kernels.push_back(&kAvx2FoldKernels);
#endif
  kernels.push_back(&kPortableFoldKernels);
  return kernels;
}

}  // namespace

const FoldKernels kPortableFoldKernels = {"portable", BuildTables, Multiply};

const std::vector<const FoldKernels*>& AvailableFoldKernels() {
  static const std::vector<const FoldKernels*> kernels = FindKernels();
  return kernels;
}

}  // namespace ultrasketch::fold_internal
