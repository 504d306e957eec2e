// Warpgroup instructions that multiply bytes, exactly, and those that move registers between
// warpgroups.
#ifndef ULTRASKETCH_ENGINE_CODECS_CUDA_PTX_WGMMA_INT8_CUH_
#define ULTRASKETCH_ENGINE_CODECS_CUDA_PTX_WGMMA_INT8_CUH_

#include <cstdint>

namespace ultrasketch::cuda {

// sums += A B for 64 rows and 32 columns: bytes of A in registers, signed ones of B in shared
// memory, neighbouring columns in sequence. Warp w of the four holds rows 16 w + lane / 4 (a 0 and
// 2, sums 4 i and 4 i + 1) and 8 more (a 1 and 3, sums 4 i + 2 and 4 i + 3): of A the columns
// 4 (lane % 4) and the next three (a 0 and 1), and 16 more (a 2 and 3); of the sums columns
// 8 i + 2 (lane % 4) and the next, the two planes of a token.
#define US_ACCUMULATORS(i)                                                     \
  "+r"(accumulators[i]), "+r"(accumulators[i + 1]), "+r"(accumulators[i + 2]), \
      "+r"(accumulators[i + 3])

// 16 tokens, unsigned bytes of A.
__device__ inline void WgmmaU8(const uint32_t (&a)[4], uint64_t b, int (&accumulators)[16]) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n32k32.s32.u8.s8 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
      "}, {%16, %17, %18, %19}, %20, 1;"
      : US_ACCUMULATORS(0), US_ACCUMULATORS(4), US_ACCUMULATORS(8), US_ACCUMULATORS(12)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// 32 tokens, likewise.
__device__ inline void WgmmaU8(const uint32_t (&a)[4], uint64_t b, int (&accumulators)[32]) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k32.s32.u8.s8 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, {%32, %33, %34, %35}, %36, 1;"
      : US_ACCUMULATORS(0), US_ACCUMULATORS(4), US_ACCUMULATORS(8), US_ACCUMULATORS(12),
        US_ACCUMULATORS(16), US_ACCUMULATORS(20), US_ACCUMULATORS(24), US_ACCUMULATORS(28)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// 64 tokens, likewise.
__device__ inline void WgmmaU8(const uint32_t (&a)[4], uint64_t b, int (&accumulators)[64]) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k32.s32.u8.s8 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
      "}, {%64, %65, %66, %67}, %68, 1;"
      : US_ACCUMULATORS(0), US_ACCUMULATORS(4), US_ACCUMULATORS(8), US_ACCUMULATORS(12),
        US_ACCUMULATORS(16), US_ACCUMULATORS(20), US_ACCUMULATORS(24), US_ACCUMULATORS(28),
        US_ACCUMULATORS(32), US_ACCUMULATORS(36), US_ACCUMULATORS(40), US_ACCUMULATORS(44),
        US_ACCUMULATORS(48), US_ACCUMULATORS(52), US_ACCUMULATORS(56), US_ACCUMULATORS(60)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// 32 tokens, signed bytes of A. Unless it adds, sums = A B.
template <bool kAdds>
__device__ inline void WgmmaS8(const uint32_t (&a)[4], uint64_t b, int (&accumulators)[32]) {
  asm volatile(
      "{ .reg .pred adds; setp.ne.b32 adds, %37, 0; "
      "wgmma.mma_async.sync.aligned.m64n64k32.s32.s8.s8 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, {%32, %33, %34, %35}, %36, adds; }"
      : US_ACCUMULATORS(0), US_ACCUMULATORS(4), US_ACCUMULATORS(8), US_ACCUMULATORS(12),
        US_ACCUMULATORS(16), US_ACCUMULATORS(20), US_ACCUMULATORS(24), US_ACCUMULATORS(28)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kAdds ? 1 : 0));
}

#undef US_ACCUMULATORS

// Keeps the compiler from moving what reads the sums to before a wait for them.
template <int kCount>
__device__ inline void FenceAccumulators(int (&accumulators)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(accumulators[i])::"memory");
}

// Registers of each thread of the calling warpgroup, from what the kernel was launched with.
template <int kRegisters>
__device__ inline void WarpgroupRegAlloc() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void WarpgroupRegDealloc() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_CUDA_PTX_WGMMA_INT8_CUH_
