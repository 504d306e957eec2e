// What this processor can run, as the names of the kernels' sources have it.
#ifndef ULTRASKETCH_ENGINE_BASE_INSTRUCTION_SET_H_
#define ULTRASKETCH_ENGINE_BASE_INSTRUCTION_SET_H_

namespace ultrasketch {

// AVX-512 F, BW, DQ and VL, and FMA.
inline bool HasAvx512() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

// AVX2 and FMA.
inline bool HasAvx2() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

// "avx512", "avx2" or "portable".
inline const char* BestInstructionSet() {
  return HasAvx512() ? "avx512" : HasAvx2() ? "avx2" : "portable";
}

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BASE_INSTRUCTION_SET_H_
