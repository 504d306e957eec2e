#include "engine/codecs/absmaxmin/absmaxmin_kernels.h"

#include <string_view>

#include "engine/base/instruction_set.h"

namespace ultrasketch::absmaxmin_internal {

const AbsMaxMinKernels* FindAbsMaxMinKernels(const char* name) {
  const std::string_view wanted = name;
  if (wanted == "avx512" && HasAvx512()) return &kAvx512AbsMaxMinKernels;
  if (wanted == "avx2" && HasAvx2()) return &kAvx2AbsMaxMinKernels;
  if (wanted == "portable") return &kPortableAbsMaxMinKernels;
  return nullptr;
}

const AbsMaxMinKernels& GetAbsMaxMinKernels() {
  static const AbsMaxMinKernels& kernels = *FindAbsMaxMinKernels(BestInstructionSet());
  return kernels;
}

}  // namespace ultrasketch::absmaxmin_internal
