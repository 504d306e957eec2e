#include "engine/codecs/grouped/grouped_kernels.h"

#include <string_view>

#include "engine/base/instruction_set.h"

namespace ultrasketch {

const GroupedKernels* FindGroupedKernels(const char* name) {
  const std::string_view wanted = name;
  if (wanted == "avx512" && HasAvx512()) return &kAvx512GroupedKernels;
  if (wanted == "avx2" && HasAvx2()) return &kAvx2GroupedKernels;
  if (wanted == "portable") return &kPortableGroupedKernels;
  return nullptr;
}

const GroupedKernels& GetGroupedKernels() {
  static const GroupedKernels& kernels = *FindGroupedKernels(BestInstructionSet());
  return kernels;
}

}  // namespace ultrasketch
