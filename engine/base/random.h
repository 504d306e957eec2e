// Counter-based random numbers: the value at (key, counter) is a pure function
// of both, so results depend neither on the order of the calls nor on which
// thread makes them.
#ifndef ULTRASKETCH_ENGINE_BASE_RANDOM_H_
#define ULTRASKETCH_ENGINE_BASE_RANDOM_H_

#include <array>
#include <cstdint>

namespace ultrasketch {

// Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3",
// SC 2011).
std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// Uniform in [0, 1) with 53 bits, a function of (seed, stream, index) alone.
double UniformDouble(uint64_t seed, uint64_t stream, uint64_t index);

// A uniform 64-bit word, likewise.
uint64_t RandomWord(uint64_t seed, uint64_t stream, uint64_t index);

// Standard normal (Box-Muller on two words of the same Philox block).
double NormalDouble(uint64_t seed, uint64_t stream, uint64_t index);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BASE_RANDOM_H_
