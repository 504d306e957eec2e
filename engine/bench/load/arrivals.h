// When requests of an open loop arrive: at times that do not depend on how the server keeps up.
#ifndef ULTRASKETCH_ENGINE_BENCH_LOAD_ARRIVALS_H_
#define ULTRASKETCH_ENGINE_BENCH_LOAD_ARRIVALS_H_

#include <cstdint>

namespace ultrasketch {

enum class ArrivalProcess : uint8_t {
  kPoisson,   // independent users: intervals are exponentially distributed
  kConstant,  // equal intervals
};

// The arrivals of one run, in order. Not thread-safe.
class Arrivals {
 public:
  // `rate`, above 0, is requests a second.
  Arrivals(ArrivalProcess process, double rate, uint64_t seed)
      : process_(process), rate_(rate), seed_(seed) {}

  // Seconds from the start of the run to the next arrival. The first of kConstant is at 0.
  double Next();

 private:
  const ArrivalProcess process_;
  const double rate_;
  const uint64_t seed_;
  uint64_t num_arrivals_ = 0;
  double last_ = 0;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BENCH_LOAD_ARRIVALS_H_
