// Makes a norm's weight make up for the rounding of the linear site that reads it.
#ifndef ULTRASKETCH_ENGINE_COMPRESS_NORM_REFIT_H_
#define ULTRASKETCH_ENGINE_COMPRESS_NORM_REFIT_H_

#include <vector>

#include "engine/base/thread_pool.h"
#include "engine/codecs/codec.h"
#include "engine/compress/site_moments.h"

namespace ultrasketch {

// Factors g [cols] for the channels of the site's input x that minimize the sum over tokens of
// |y - W' (g * x)|^2, drawn to 1 where the inputs decide little. A norm's weight is multiplied by
// them at no cost in bits. Finite for any finite moments.
std::vector<double> FitChannelFactors(const EncodedLinear& encoded, const SiteMoments& moments,
                                      ThreadPool& pool);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_COMPRESS_NORM_REFIT_H_
