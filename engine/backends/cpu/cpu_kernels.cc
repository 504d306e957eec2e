#include "engine/backends/cpu/cpu_kernels.h"

#include <string_view>

#include "engine/base/instruction_set.h"

namespace ultrasketch {

const CpuKernels* FindCpuKernels(const char* name) {
  const std::string_view wanted = name;
  if (wanted == "avx512" && HasAvx512()) return &kAvx512CpuKernels;
  if (wanted == "avx2" && HasAvx2()) return &kAvx2CpuKernels;
  if (wanted == "portable") return &kPortableCpuKernels;
  return nullptr;
}

const CpuKernels& GetCpuKernels() {
  static const CpuKernels& kernels = *FindCpuKernels(BestInstructionSet());
  return kernels;
}

}  // namespace ultrasketch
