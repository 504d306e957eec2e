#include "engine/bench/load/arrivals.h"

#include <cmath>

#include "engine/base/random.h"
#include "engine/bench/load/random_streams.h"

namespace ultrasketch {

double Arrivals::Next() {
  const uint64_t index = num_arrivals_++;
  if (process_ == ArrivalProcess::kConstant) return static_cast<double>(index) / rate_;
  last_ -= std::log1p(-UniformDouble(seed_, kArrivalStream, index)) / rate_;
  return last_;
}

}  // namespace ultrasketch
