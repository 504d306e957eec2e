// Which streams of a seed's random numbers (engine/base/random.h) the load generator uses for what.
#ifndef ULTRASKETCH_ENGINE_BENCH_LOAD_RANDOM_STREAMS_H_
#define ULTRASKETCH_ENGINE_BENCH_LOAD_RANDOM_STREAMS_H_

#include <cstdint>

namespace ultrasketch {

inline constexpr uint64_t kArrivalStream = 1;
inline constexpr uint64_t kPromptLengthStream = 2;
inline constexpr uint64_t kOutputLengthStream = 3;
inline constexpr uint64_t kPrefixChoiceStream = 4;
inline constexpr uint64_t kSamplingStream = 5;
inline constexpr uint64_t kRunStream = 6;
inline constexpr uint64_t kTraceBlockStream = 7;  // of a block's id, for the stream of its tokens
// Tokens of what is shared, and of what is a request's own: a stream for each, from here on.
inline constexpr uint64_t kPrefixStreams = uint64_t{1} << 32;
inline constexpr uint64_t kPromptStreams = uint64_t{4} << 32;

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BENCH_LOAD_RANDOM_STREAMS_H_
