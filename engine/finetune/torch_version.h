// Which LibTorch this is compiled with: the oldest is Debian 12's, 1.13.
#ifndef ULTRASKETCH_ENGINE_FINETUNE_TORCH_VERSION_H_
#define ULTRASKETCH_ENGINE_FINETUNE_TORCH_VERSION_H_

#include <torch/version.h>

#define US_TORCH_AT_LEAST(major, minor) \
  (TORCH_VERSION_MAJOR > (major) ||     \
   (TORCH_VERSION_MAJOR == (major) && TORCH_VERSION_MINOR >= (minor)))

#endif  // ULTRASKETCH_ENGINE_FINETUNE_TORCH_VERSION_H_
