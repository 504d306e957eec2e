#include "engine/codecs/grouped/grouped_kernels_impl.h"

US_DEFINE_GROUPED_KERNELS(kAvx512GroupedKernels, "avx512")
