#include "engine/base/random.h"

#include <cmath>
#include <numbers>

namespace ultrasketch {
namespace {

std::array<uint32_t, 4> Block(uint64_t seed, uint64_t stream, uint64_t index) {
  return Philox4x32({static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32),
                     static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)},
                    {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
}

uint64_t Word(uint32_t low, uint32_t high) { return uint64_t{high} << 32 | low; }

double ToUnitInterval(uint64_t word) { return static_cast<double>(word >> 11) * 0x1p-53; }

}  // namespace

std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53u} * counter[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key[0],
               static_cast<uint32_t>(product1),
               static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key[1],
               static_cast<uint32_t>(product0)};
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return counter;
}

uint64_t RandomWord(uint64_t seed, uint64_t stream, uint64_t index) {
  const auto block = Block(seed, stream, index);
  return Word(block[0], block[1]);
}

double UniformDouble(uint64_t seed, uint64_t stream, uint64_t index) {
  return ToUnitInterval(RandomWord(seed, stream, index));
}

double NormalDouble(uint64_t seed, uint64_t stream, uint64_t index) {
  const auto block = Block(seed, stream, index);
  const double radius = std::sqrt(-2 * std::log1p(-ToUnitInterval(Word(block[0], block[1]))));
  return radius * std::cos(2 * std::numbers::pi * ToUnitInterval(Word(block[2], block[3])));
}

}  // namespace ultrasketch
