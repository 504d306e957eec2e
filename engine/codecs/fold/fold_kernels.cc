#include "engine/codecs/fold/fold_kernels.h"

#include "engine/base/instruction_set.h"

namespace ultrasketch::fold_internal {

const FoldKernels* FindFoldKernels(const char* name) {
  return FindKernels(name, kAvx512FoldKernels, kAvx2FoldKernels, kPortableFoldKernels);
}

const FoldKernels& GetFoldKernels() {
  static const FoldKernels& kernels = *FindFoldKernels(InstructionSet());
  return kernels;
}

}  // namespace ultrasketch::fold_internal
