// What half bytes of a KV cache stand for (int4_row.h).
#ifndef ULTRASKETCH_ENGINE_KV_INT4_LEVELS_H_
#define ULTRASKETCH_ENGINE_KV_INT4_LEVELS_H_

#include <cstdint>

namespace ultrasketch {

// Numbers that share a scale; a row's last group may be shorter.
inline constexpr int kInt4Group = 32;

// What codes 0 to 15 stand for, in units of the group's scale.
inline constexpr int8_t kInt4Levels[16] = {-15, -13, -11, -9, -7, -5, -3, -1,
                                           1,   3,   5,   7,  9,  11, 13, 15};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_KV_INT4_LEVELS_H_
