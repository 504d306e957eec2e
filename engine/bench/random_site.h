// Random weights of given shapes, for measurements that need no trained ones.
#ifndef ULTRASKETCH_ENGINE_BENCH_RANDOM_SITE_H_
#define ULTRASKETCH_ENGINE_BENCH_RANDOM_SITE_H_

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "engine/codecs/codec.h"

namespace ultrasketch {

// A matrix in one of its stored forms: a linear site, or an embedding and output head.
class RandomSite {
 public:
  // `codec` is "fold", "absmaxmin" (bits_per_weight as in kernel_bench.h), "int8", "int4" or
  // "dense" (bfloat16).
  RandomSite(const LinearSite& site, std::string_view codec, double bits_per_weight);

  std::shared_ptr<const EncodedLinear> encoded() const { return encoded_; }
  const EncodedLinear& linear() const { return *encoded_; }

 private:
  std::vector<uint16_t> values_;  // of dense weights
  std::shared_ptr<const EncodedLinear> encoded_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BENCH_RANDOM_SITE_H_
