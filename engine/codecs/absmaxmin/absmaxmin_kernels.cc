#include "engine/codecs/absmaxmin/absmaxmin_kernels.h"

#include "engine/base/instruction_set.h"

namespace ultrasketch::absmaxmin_internal {

const AbsMaxMinKernels* FindAbsMaxMinKernels(const char* name) {
  return FindKernels(name, kAvx512AbsMaxMinKernels, kAvx2AbsMaxMinKernels,
                     kPortableAbsMaxMinKernels);
}

const AbsMaxMinKernels& GetAbsMaxMinKernels() {
  static const AbsMaxMinKernels& kernels = *FindAbsMaxMinKernels(InstructionSet());
  return kernels;
}

}  // namespace ultrasketch::absmaxmin_internal
