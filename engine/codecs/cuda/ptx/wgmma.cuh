// wgmma: matrix instructions of a warpgroup, four warps, and what belongs to them: smem (GMMA)
// descriptors, the async proxy's fence, registers that move between warpgroups (setmaxnreg).
// Compute capability 9.0a.
#ifndef ULTRASKETCH_ENGINE_CODECS_CUDA_PTX_WGMMA_CUH_
#define ULTRASKETCH_ENGINE_CODECS_CUDA_PTX_WGMMA_CUH_

#include <cstdint>

namespace ultrasketch::cuda {

// What has been written to shared memory, by this thread or by others before a barrier that it has
// waited for, is visible to the instructions below. Waits for this thread's loads and copies too.
__device__ inline void FenceProxyAsync() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
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

// How an operand lies in shared memory (PTX ISA, "Matrix descriptor"): swizzled in units of 64 or
// 128 bytes, which start at multiples of 512 or 1024. `leading_bytes` and `stride_bytes` are the
// distances between neighbouring units.
enum class SmemSwizzle : uint64_t { k128Bytes = 1, k64Bytes = 2 };

__device__ inline uint64_t SmemDescriptor(uint32_t shared_address, uint32_t leading_bytes,
                                          uint32_t stride_bytes, SmemSwizzle swizzle) {
  const auto field = [](uint32_t bytes) { return uint64_t{(bytes & 0x3ffffu) >> 4}; };
  return field(shared_address) | field(leading_bytes) << 16 | field(stride_bytes) << 32 |
         static_cast<uint64_t>(swizzle) << 62;
}

// The same operand `bytes`, a multiple of 16, further on.
__device__ inline uint64_t AdvanceDescriptor(uint64_t descriptor, uint32_t bytes) {
  return descriptor + (bytes >> 4);
}

// Before the first instruction that uses registers written by others.
__device__ inline void WgmmaFence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void WgmmaCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Returns when all but the last kPending committed groups are done.
template <int kPending>
__device__ inline void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving what reads the accumulators to before a wait for them.
template <int kCount>
__device__ inline void FenceAccumulators(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// What follows each other in memory: neighbouring columns (K-major) or rows (M-major).
enum class OperandMajor : int { kColumns = 0, kRows = 1 };

// d += A B for 64 rows and 16 columns, fp16 with float accumulators d. B is K-major. Warp w of the
// four holds rows 16 w + lane / 4 (d 4 i and 4 i + 1) and 8 more (4 i + 2 and 4 i + 3) of tokens
// 8 i + 2 (lane % 4) and the next.
#define US_D(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])

// 8 tokens.
template <OperandMajor kMajorOfA = OperandMajor::kRows>
__device__ inline void Wgmma(uint64_t a, uint64_t b, float (&d)[4]) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 "
      "{%0, %1, %2, %3"
      "}, %4, %5, 1, 1, 1, %6, 0;"
      : US_D(0)
      : "l"(a), "l"(b), "n"(static_cast<int>(kMajorOfA)));
}

// 16 tokens.
template <OperandMajor kMajorOfA = OperandMajor::kRows>
__device__ inline void Wgmma(uint64_t a, uint64_t b, float (&d)[8]) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7"
      "}, %8, %9, 1, 1, 1, %10, 0;"
      : US_D(0), US_D(4)
      : "l"(a), "l"(b), "n"(static_cast<int>(kMajorOfA)));
}

// 32 tokens.
template <OperandMajor kMajorOfA = OperandMajor::kRows>
__device__ inline void Wgmma(uint64_t a, uint64_t b, float (&d)[16]) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
      "}, %16, %17, 1, 1, 1, %18, 0;"
      : US_D(0), US_D(4), US_D(8), US_D(12)
      : "l"(a), "l"(b), "n"(static_cast<int>(kMajorOfA)));
}

// 64 tokens.
template <OperandMajor kMajorOfA = OperandMajor::kRows>
__device__ inline void Wgmma(uint64_t a, uint64_t b, float (&d)[32]) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, %32, %33, 1, 1, 1, %34, 0;"
      : US_D(0), US_D(4), US_D(8), US_D(12), US_D(16), US_D(20), US_D(24), US_D(28)
      : "l"(a), "l"(b), "n"(static_cast<int>(kMajorOfA)));
}

// 128 tokens.
template <OperandMajor kMajorOfA = OperandMajor::kRows>
__device__ inline void Wgmma(uint64_t a, uint64_t b, float (&d)[64]) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
      "}, %64, %65, 1, 1, 1, %66, 0;"
      : US_D(0), US_D(4), US_D(8), US_D(12), US_D(16), US_D(20), US_D(24), US_D(28), US_D(32),
        US_D(36), US_D(40), US_D(44), US_D(48), US_D(52), US_D(56), US_D(60)
      : "l"(a), "l"(b), "n"(static_cast<int>(kMajorOfA)));
}

// 192 tokens.
template <OperandMajor kMajorOfA = OperandMajor::kRows>
__device__ inline void Wgmma(uint64_t a, uint64_t b, float (&d)[96]) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n192k16.f32.f16.f16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
      "}, %96, %97, 1, 1, 1, %98, 0;"
      : US_D(0), US_D(4), US_D(8), US_D(12), US_D(16), US_D(20), US_D(24), US_D(28), US_D(32),
        US_D(36), US_D(40), US_D(44), US_D(48), US_D(52), US_D(56), US_D(60), US_D(64), US_D(68),
        US_D(72), US_D(76), US_D(80), US_D(84), US_D(88), US_D(92)
      : "l"(a), "l"(b), "n"(static_cast<int>(kMajorOfA)));
}

// 256 tokens.
template <OperandMajor kMajorOfA = OperandMajor::kRows>
__device__ inline void Wgmma(uint64_t a, uint64_t b, float (&d)[128]) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, "
      "%127"
      "}, %128, %129, 1, 1, 1, %130, 0;"
      : US_D(0), US_D(4), US_D(8), US_D(12), US_D(16), US_D(20), US_D(24), US_D(28), US_D(32),
        US_D(36), US_D(40), US_D(44), US_D(48), US_D(52), US_D(56), US_D(60), US_D(64), US_D(68),
        US_D(72), US_D(76), US_D(80), US_D(84), US_D(88), US_D(92), US_D(96), US_D(100), US_D(104),
        US_D(108), US_D(112), US_D(116), US_D(120), US_D(124)
      : "l"(a), "l"(b), "n"(static_cast<int>(kMajorOfA)));
}

#undef US_D

// ---- Bytes, exactly ----

// d += A B for 64 rows and 32 columns: bytes of A in registers, signed ones of B in shared
// memory, neighbouring columns in sequence. Warp w of the four holds rows 16 w + lane / 4 (a 0 and
// 2, d 4 i and 4 i + 1) and 8 more (a 1 and 3, d 4 i + 2 and 4 i + 3): of A the columns
// 4 (lane % 4) and the next three (a 0 and 1), and 16 more (a 2 and 3); of d columns
// 8 i + 2 (lane % 4) and the next, the high and the low bytes of a token.
#define US_D(i) "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3])

// 16 tokens, unsigned bytes of A.
__device__ inline void WgmmaU8(const uint32_t (&a)[4], uint64_t b, int (&d)[16]) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n32k32.s32.u8.s8 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
      "}, {%16, %17, %18, %19}, %20, 1;"
      : US_D(0), US_D(4), US_D(8), US_D(12)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// 32 tokens, likewise.
__device__ inline void WgmmaU8(const uint32_t (&a)[4], uint64_t b, int (&d)[32]) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k32.s32.u8.s8 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, {%32, %33, %34, %35}, %36, 1;"
      : US_D(0), US_D(4), US_D(8), US_D(12), US_D(16), US_D(20), US_D(24), US_D(28)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// 64 tokens, likewise.
__device__ inline void WgmmaU8(const uint32_t (&a)[4], uint64_t b, int (&d)[64]) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k32.s32.u8.s8 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
      "}, {%64, %65, %66, %67}, %68, 1;"
      : US_D(0), US_D(4), US_D(8), US_D(12), US_D(16), US_D(20), US_D(24), US_D(28), US_D(32),
        US_D(36), US_D(40), US_D(44), US_D(48), US_D(52), US_D(56), US_D(60)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// 32 tokens, signed bytes of A. Unless it adds, d = A B.
template <bool kAdds>
__device__ inline void WgmmaS8(const uint32_t (&a)[4], uint64_t b, int (&d)[32]) {
  asm volatile(
      "{ .reg .pred adds; setp.ne.b32 adds, %37, 0; "
      "wgmma.mma_async.sync.aligned.m64n64k32.s32.s8.s8 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, {%32, %33, %34, %35}, %36, adds; }"
      : US_D(0), US_D(4), US_D(8), US_D(12), US_D(16), US_D(20), US_D(24), US_D(28)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kAdds ? 1 : 0));
}

#undef US_D

// Keeps the compiler from moving what reads the accumulators to before a wait for them.
template <int kCount>
__device__ inline void FenceAccumulators(int (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(d[i])::"memory");
}

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_CUDA_PTX_WGMMA_CUH_
