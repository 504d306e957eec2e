#include "engine/backends/cpu/cpu_kernels_impl.h"

US_DEFINE_CPU_KERNELS(kAvx2CpuKernels, "avx2")
