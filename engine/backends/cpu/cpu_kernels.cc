#include "engine/backends/cpu/cpu_kernels.h"

#include "engine/base/instruction_set.h"

namespace ultrasketch {

const CpuKernels* FindCpuKernels(const char* name) {
  return FindKernels(name, kAvx512CpuKernels, kAvx2CpuKernels, kPortableCpuKernels);
}

const CpuKernels& GetCpuKernels() {
  static const CpuKernels& kernels = *FindCpuKernels(InstructionSet());
  return kernels;
}

}  // namespace ultrasketch
