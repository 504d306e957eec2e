// Launching products of uncompressed weights by wgmma: which tile is quickest.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "engine/codecs/cuda/launch.cuh"
#include "engine/codecs/dense/cuda/dense_product_hopper.h"

#if defined(US_BUILD_SM_90A)
#include "engine/codecs/dense/cuda/dense_product_hopper.cuh"
#endif

namespace ultrasketch::cuda {

#if defined(US_BUILD_SM_90A)
namespace {

using namespace dense_product_hopper;  // NOLINT(google-build-using-namespace): the kernel's parts

struct Choice {
  int64_t cost = INT64_MAX;
  cudaError_t (*launch)(const ProductArguments&, const DensePlan&, cudaStream_t) = nullptr;
  DensePlan plan = {};
};

template <int kWarpgroups, int kTokens, bool kTakesTurns = false>
void Consider(const ProductArguments& arguments, Choice& choice) {
  using Tile = DenseTile<kWarpgroups, kTokens, kTakesTurns>;
  // Twice the tokens would be multiplied for nothing.
  if (kTokens > 8 && arguments.num_tokens <= kTokens / 2) return;
  const int most_splits =
      kTakesTurns ? 1 : NumDenseKSplits(arguments.matrix.rows, arguments.matrix.num_k_tiles);
  for (int m_tiles = (kWarpgroups - 1) * kWarpgroupMTiles + 1;
       m_tiles <= kWarpgroups * kWarpgroupMTiles; ++m_tiles) {
    if (Tile::NumStages(m_tiles, arguments.max_shared_bytes) < kMinStages) continue;
    for (int splits = 1; splits <= most_splits; ++splits) {
      const DensePlan plan = PlanOf<Tile>(arguments, m_tiles, splits);
      const int64_t cost = CostOf<Tile>(arguments, plan);
      // Among equals that with more rows, which reads inputs less often.
      if (cost <= choice.cost) choice = {cost, LaunchDense<Tile>, plan};
    }
  }
}

Choice Choose(const ProductArguments& arguments) {
  Choice choice;
  Consider<1, 8>(arguments, choice);
  Consider<1, 16>(arguments, choice);
  Consider<1, 32>(arguments, choice);
  Consider<1, 64>(arguments, choice);
  Consider<2, 64>(arguments, choice);
  Consider<1, 128>(arguments, choice);
  Consider<2, 128>(arguments, choice);
  Consider<3, 128>(arguments, choice);
  Consider<2, 256>(arguments, choice);
  Consider<2, 128, true>(arguments, choice);
  Consider<2, 192, true>(arguments, choice);
  return choice;
}

// The choices that this thread has made last: a K tile has few shapes, over and over.
const Choice& ChoiceFor(const ProductArguments& arguments) {
  struct Entry {
    int64_t rows = 0;
    int64_t num_k_tiles = 0;
    int64_t num_tokens = 0;
    int num_sms = 0;
    int max_shared_bytes = 0;
    Choice choice;
  };
  thread_local std::array<Entry, 16> entries;
  thread_local size_t next = 0;
  for (const Entry& entry : entries) {
    if (entry.rows == arguments.matrix.rows && entry.num_k_tiles == arguments.matrix.num_k_tiles &&
        entry.num_tokens == arguments.num_tokens && entry.num_sms == arguments.num_sms &&
        entry.max_shared_bytes == arguments.max_shared_bytes) {
      return entry.choice;
    }
  }
  Entry& entry = entries[next];
  next = (next + 1) % entries.size();
  entry = {arguments.matrix.rows, arguments.matrix.num_k_tiles, arguments.num_tokens,
           arguments.num_sms,     arguments.max_shared_bytes,   Choose(arguments)};
  return entry.choice;
}

}  // namespace

bool HasDenseProductHopper() {
  static const bool is_off = [] {
    const char* value = std::getenv("ULTRASKETCH_CUDA_DENSE_WGMMA");
    return value != nullptr && std::strcmp(value, "off") == 0;
  }();
  return !is_off && IsHopper();
}

cudaError_t LaunchDenseProductHopper(const ProductArguments& arguments, cudaStream_t stream) {
  const Choice& choice = ChoiceFor(arguments);
  if (choice.launch == nullptr) return cudaErrorNotSupported;
  return choice.launch(arguments, choice.plan, stream);
}

#else

bool HasDenseProductHopper() { return false; }
cudaError_t LaunchDenseProductHopper(const ProductArguments&, cudaStream_t) {
  return cudaErrorNotSupported;
}

#endif

}  // namespace ultrasketch::cuda
