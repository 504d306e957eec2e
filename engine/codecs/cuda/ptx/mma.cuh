// mma.sync: matrix instructions of a warp. Of the accumulators `d`, lane l holds rows l / 4 (d 0
// and 1) and l / 4 + 8 (2 and 3), columns 2 * (l % 4) and the next.
#ifndef ULTRASKETCH_ENGINE_CODECS_CUDA_PTX_MMA_CUH_
#define ULTRASKETCH_ENGINE_CODECS_CUDA_PTX_MMA_CUH_

#include <cuda_runtime.h>

#include <cstdint>

namespace ultrasketch::cuda {

// d += a * b: mma.sync.m16n8k16, fp16 inputs, float accumulators.
__device__ inline void MmaF16(const uint32_t (&a)[4], uint2 b, float (&d)[4]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y));
}

// d += a * b: mma.sync.m16n8k32, signed bytes, exact.
__device__ inline void MmaS8(const uint32_t (&a)[4], uint2 b, int (&d)[4]) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y));
}

// counts += popcount of the rows of `a` AND the columns of `b`: mma.sync.m16n8k256, counts as d.
__device__ inline void MmaAndPopc(const uint4& a, uint2 b, int (&counts)[4]) {
  asm("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(counts[0]), "+r"(counts[1]), "+r"(counts[2]), "+r"(counts[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y));
}

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_CUDA_PTX_MMA_CUH_
