// Fits the AbsMaxMin sketch of a site to second moments of its inputs and outputs.
//
// What is sketched are the least-squares weights theta = G H^-1, with a prior that holds them to
// the dense ones where the inputs say little. Columns that share buckets are inserted as the paper
// says. Columns with buckets of their own are then fitted to what those lack, and rounded to the
// nearest level one at a time, each error made up for by the columns still to come (GPTQ: Frantar
// et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", ICLR
// 2023, section 3). Last each row's scale is refitted, so that decoded weights may exceed the dense
// ones.
#ifndef ULTRASKETCH_ENGINE_COMPRESS_ABSMAXMIN_FIT_H_
#define ULTRASKETCH_ENGINE_COMPRESS_ABSMAXMIN_FIT_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/types/span.h"

#include "engine/base/thread_pool.h"
#include "engine/codecs/absmaxmin/absmaxmin_linear.h"
#include "engine/compress/site_moments.h"

namespace ultrasketch {

// `weights` [rows, cols] are the dense ones. Columns go to `classes` (valid for the site's columns)
// in the order of their importance: energy of the input times squared weights. The unit exponents
// of `classes` are chosen here. Any finite moments give finite scales, however singular they are.
// The result does not depend on the number of threads.
std::unique_ptr<AbsMaxMinLinear> FitAbsMaxMinSite(const LinearSite& site,
                                                  std::vector<AbsMaxMinClass> classes,
                                                  uint64_t seed, absl::Span<const float> weights,
                                                  const SiteMoments& moments, ThreadPool& pool);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_COMPRESS_ABSMAXMIN_FIT_H_
