// Which instruction set the CPU kernels use, as the names of their sources have it: "avx512" (F,
// BW, DQ, VL and FMA), "avx2" (FMA and F16C, too) or "portable", what every processor of the
// architecture has (SSE2, NEON).
#ifndef ULTRASKETCH_ENGINE_BASE_INSTRUCTION_SET_H_
#define ULTRASKETCH_ENGINE_BASE_INSTRUCTION_SET_H_

#include <string_view>

#include "absl/status/status.h"

namespace ultrasketch {

// An environment variable: the instruction set to use rather than the best one.
inline constexpr char kInstructionSetVariable[] = "ULTRASKETCH_INSTRUCTION_SET";

// Whether this processor can run it; false for an unknown name.
bool HasInstructionSet(std::string_view name);

// The one that the environment asks for, else the best that this processor can run. Fixed at the
// first call; aborts when CheckInstructionSet would not be OK.
const char* InstructionSet();

// INVALID_ARGUMENT when the environment asks for one that is unknown or cannot run here.
absl::Status CheckInstructionSet();

// The kernels of a given instruction set of a family that has these; null when this processor
// cannot run it.
template <typename Kernels>
const Kernels* FindKernels(std::string_view name, const Kernels& avx512, const Kernels& avx2,
                           const Kernels& portable) {
  if (!HasInstructionSet(name)) return nullptr;
  return name == "avx512" ? &avx512 : name == "avx2" ? &avx2 : &portable;
}

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BASE_INSTRUCTION_SET_H_
