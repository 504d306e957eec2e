#include "engine/codecs/fold/fold_kernels_impl.h"

US_DEFINE_FOLD_KERNELS(kPortableFoldKernels, "portable")
