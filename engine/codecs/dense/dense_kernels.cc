#include "engine/codecs/dense/dense_kernels.h"

#include <string_view>

#include "engine/base/instruction_set.h"

namespace ultrasketch {

const DenseKernels* FindDenseKernels(const char* name) {
  const std::string_view wanted = name;
  if (wanted == "avx512" && HasAvx512()) return &kAvx512DenseKernels;
  if (wanted == "avx2" && HasAvx2()) return &kAvx2DenseKernels;
  if (wanted == "portable") return &kPortableDenseKernels;
  return nullptr;
}

const DenseKernels& GetDenseKernels() {
  static const DenseKernels& kernels = *FindDenseKernels(BestInstructionSet());
  return kernels;
}

}  // namespace ultrasketch
