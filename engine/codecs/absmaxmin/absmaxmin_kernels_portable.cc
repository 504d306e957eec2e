#include "engine/codecs/absmaxmin/absmaxmin_kernels_impl.h"

US_DEFINE_ABSMAXMIN_KERNELS(kPortableAbsMaxMinKernels, "portable")
