#include "engine/codecs/dense/dense_kernels_impl.h"

US_DEFINE_DENSE_KERNELS(kPortableDenseKernels, "portable")
