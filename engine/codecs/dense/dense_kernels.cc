#include "engine/codecs/dense/dense_kernels.h"

#include "engine/base/instruction_set.h"

namespace ultrasketch {

const DenseKernels* FindDenseKernels(const char* name) {
  return FindKernels(name, kAvx512DenseKernels, kAvx2DenseKernels, kPortableDenseKernels);
}

const DenseKernels& GetDenseKernels() {
  static const DenseKernels& kernels = *FindDenseKernels(InstructionSet());
  return kernels;
}

}  // namespace ultrasketch
