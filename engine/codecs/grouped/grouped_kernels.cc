#include "engine/codecs/grouped/grouped_kernels.h"

#include "engine/base/instruction_set.h"

namespace ultrasketch {

const GroupedKernels* FindGroupedKernels(const char* name) {
  return FindKernels(name, kAvx512GroupedKernels, kAvx2GroupedKernels, kPortableGroupedKernels);
}

const GroupedKernels& GetGroupedKernels() {
  static const GroupedKernels& kernels = *FindGroupedKernels(InstructionSet());
  return kernels;
}

}  // namespace ultrasketch
