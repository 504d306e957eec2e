// The rotary embedding of a token, a pair of dimensions (i, i + head_dim / 2) at a time. The same
// to the bit in each kernel that rotates.
#ifndef ULTRASKETCH_ENGINE_BACKENDS_CUDA_ROTATION_CUH_
#define ULTRASKETCH_ENGINE_BACKENDS_CUDA_ROTATION_CUH_

#include <cuda_runtime.h>

namespace ultrasketch::cuda {

class Rotation {
 public:
  // `frequencies` [head_dim / 2]; `position` is the token's.
  __device__ Rotation(const float* frequencies, int position)
      : frequencies_(frequencies), position_(static_cast<float>(position)) {}

  // To pair `i`; kept while it stays the same.
  __device__ void TurnTo(int i) {
    if (i == pair_) return;
    // Whole turns are taken off in double: sincosf of any angle is a hundred instructions more.
    const double angle = __fmul_rn(position_, frequencies_[i]);
    const double turns = __dmul_rn(angle, 0.15915494309189535);
    sincospif(static_cast<float>(2.0 * __dsub_rn(turns, rint(turns))), &sine_, &cosine_);
    pair_ = i;
  }
  // `low` and `high` are dimensions i and i + head_dim / 2.
  __device__ float2 Apply(float low, float high) const {
    return {__fmaf_rn(low, cosine_, -__fmul_rn(high, sine_)),
            __fmaf_rn(high, cosine_, __fmul_rn(low, sine_))};
  }

 private:
  const float* frequencies_;
  float position_;
  int pair_ = -1;
  float sine_ = 0.0f;
  float cosine_ = 1.0f;
};

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_BACKENDS_CUDA_ROTATION_CUH_
