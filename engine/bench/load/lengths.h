// How long prompts and completions are.
#ifndef ULTRASKETCH_ENGINE_BENCH_LOAD_LENGTHS_H_
#define ULTRASKETCH_ENGINE_BENCH_LOAD_LENGTHS_H_

#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace ultrasketch {

// The longest that a distribution may give.
inline constexpr int64_t kMaxLoadTokens = int64_t{1} << 24;

// Numbers of tokens, from 1 to kMaxLoadTokens. Immutable.
class LengthDistribution {
 public:
  // What people write:
  //   N                          always N
  //   A:B                        each of A to B alike
  //   lognormal:MEDIAN:SIGMA:MAX exp(normal) rounded: SIGMA is the standard deviation of the
  //                              logarithm; below 1 it is 1, above MAX it is MAX
  //   file:PATH                  the whole numbers in PATH, a line each, in order, over and over
  // INVALID_ARGUMENT, saying what was expected, for anything else; what ReadFile returns for PATH.
  static absl::StatusOr<LengthDistribution> Parse(std::string_view text);

  static LengthDistribution Fixed(int64_t tokens);

  // The length of request `index`: a function of the arguments alone. Requests that differ in
  // `stream` are drawn independently.
  int64_t Draw(uint64_t seed, uint64_t stream, uint64_t index) const;

  // None is longer.
  int64_t longest() const { return longest_; }

 private:
  enum class Kind { kUniform, kLognormal, kList };

  Kind kind_ = Kind::kUniform;
  int64_t shortest_ = 1;  // of kUniform
  int64_t longest_ = 1;
  double median_ = 0;
  double sigma_ = 0;
  std::vector<int64_t> list_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BENCH_LOAD_LENGTHS_H_
