#include "engine/format/gguf/ggml_types.h"

#include <array>
#include <bit>
#include <cstring>
#include <vector>

#include "absl/strings/str_join.h"

#include "engine/base/dtype.h"

namespace ultrasketch {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF is little-endian");

// Elements of a block of the "K" types.
constexpr int kSuperBlock = 256;

uint16_t Load16(const uint8_t* bytes) {
  uint16_t value;
  std::memcpy(&value, bytes, sizeof(value));
  return value;
}

uint32_t Load32(const uint8_t* bytes) {
  uint32_t value;
  std::memcpy(&value, bytes, sizeof(value));
  return value;
}

float LoadHalf(const uint8_t* bytes) { return HalfToFloat(Load16(bytes)); }

int Signed(uint8_t byte) { return static_cast<int8_t>(byte); }

void DecodeF32(const uint8_t* block, float* out) { std::memcpy(out, block, sizeof(*out)); }
void DecodeF16(const uint8_t* block, float* out) { *out = LoadHalf(block); }
void DecodeBf16(const uint8_t* block, float* out) { *out = Bf16ToFloat(Load16(block)); }

// Blocks of 32: a scale `d`, with "_1" types also a minimum `m`, then 4-bit values, the low halves
// of the bytes before the high ones; 5-bit types have the fifth bits before them.
void DecodeQ4_0(const uint8_t* block, float* out) {
  const float d = LoadHalf(block);
  const uint8_t* values = block + 2;
  for (int i = 0; i < 16; ++i) {
    out[i] = static_cast<float>((values[i] & 15) - 8) * d;
    out[i + 16] = static_cast<float>((values[i] >> 4) - 8) * d;
  }
}

void DecodeQ4_1(const uint8_t* block, float* out) {
  const float d = LoadHalf(block);
  const float m = LoadHalf(block + 2);
  const uint8_t* values = block + 4;
  for (int i = 0; i < 16; ++i) {
    out[i] = static_cast<float>(values[i] & 15) * d + m;
    out[i + 16] = static_cast<float>(values[i] >> 4) * d + m;
  }
}

void DecodeQ5_0(const uint8_t* block, float* out) {
  const float d = LoadHalf(block);
  const uint32_t fifth_bits = Load32(block + 2);
  const uint8_t* values = block + 6;
  for (int i = 0; i < 16; ++i) {
    const int low = (values[i] & 15) | static_cast<int>(fifth_bits >> i & 1) << 4;
    const int high = values[i] >> 4 | static_cast<int>(fifth_bits >> (i + 16) & 1) << 4;
    out[i] = static_cast<float>(low - 16) * d;
    out[i + 16] = static_cast<float>(high - 16) * d;
  }
}

void DecodeQ5_1(const uint8_t* block, float* out) {
  const float d = LoadHalf(block);
  const float m = LoadHalf(block + 2);
  const uint32_t fifth_bits = Load32(block + 4);
  const uint8_t* values = block + 8;
  for (int i = 0; i < 16; ++i) {
    const int low = (values[i] & 15) | static_cast<int>(fifth_bits >> i & 1) << 4;
    const int high = values[i] >> 4 | static_cast<int>(fifth_bits >> (i + 16) & 1) << 4;
    out[i] = static_cast<float>(low) * d + m;
    out[i + 16] = static_cast<float>(high) * d + m;
  }
}

void DecodeQ8_0(const uint8_t* block, float* out) {
  const float d = LoadHalf(block);
  for (int i = 0; i < 32; ++i) out[i] = static_cast<float>(Signed(block[2 + i])) * d;
}

// Sixteen runs of 16: a byte each with a scale and a minimum of 4 bits, in units of d and dmin;
// then the 2-bit values, four runs of 32 to 32 bytes.
void DecodeQ2K(const uint8_t* block, float* out) {
  const uint8_t* scales = block;
  const uint8_t* values = block + 16;
  const float d = LoadHalf(block + 80);
  const float dmin = LoadHalf(block + 82);
  for (int i = 0; i < kSuperBlock; ++i) {
    const uint8_t scale = scales[i / 16];
    const int value = values[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
    out[i] = d * static_cast<float>(scale & 15) * static_cast<float>(value) -
             dmin * static_cast<float>(scale >> 4);
  }
}

// Sixteen runs of 16 with signed 6-bit scales; the third bits of the values come first.
void DecodeQ3K(const uint8_t* block, float* out) {
  const uint8_t* third_bits = block;
  const uint8_t* values = block + 32;
  const uint8_t* packed = block + 96;
  const float d = LoadHalf(block + 108);
  std::array<float, 16> scales;
  for (int run = 0; run < 16; ++run) {
    const int low = run < 8 ? packed[run] & 15 : packed[run - 8] >> 4;
    const int high = packed[8 + run % 4] >> (run / 4 * 2) & 3;
    scales[run] = d * static_cast<float>((low | high << 4) - 32);
  }
  for (int i = 0; i < kSuperBlock; ++i) {
    const int low = values[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
    const bool third = (third_bits[i % 32] >> (i / 32) & 1) != 0;
    out[i] = scales[i / 16] * static_cast<float>(third ? low : low - 4);
  }
}

struct ScaleAndMinimum {
  int scale;
  int minimum;
};

// The 6-bit scale and minimum of run `run` (of 8) of Q4_K and Q5_K, which pack them into 12 bytes.
ScaleAndMinimum UnpackScale(const uint8_t* packed, int run) {
  if (run < 4) return {packed[run] & 63, packed[run + 4] & 63};
  return {(packed[run + 4] & 15) | packed[run - 4] >> 6 << 4,
          packed[run + 4] >> 4 | packed[run] >> 6 << 4};
}

void DecodeQ4K(const uint8_t* block, float* out) {
  const float d = LoadHalf(block);
  const float dmin = LoadHalf(block + 2);
  const uint8_t* values = block + 16;
  for (int run = 0; run < 8; ++run) {
    const auto [scale, minimum] = UnpackScale(block + 4, run);
    const float step = d * static_cast<float>(scale);
    const float offset = dmin * static_cast<float>(minimum);
    for (int i = 0; i < 32; ++i) {
      const int value = values[run / 2 * 32 + i] >> (run % 2 * 4) & 15;
      out[run * 32 + i] = step * static_cast<float>(value) - offset;
    }
  }
}

void DecodeQ5K(const uint8_t* block, float* out) {
  const float d = LoadHalf(block);
  const float dmin = LoadHalf(block + 2);
  const uint8_t* fifth_bits = block + 16;
  const uint8_t* values = block + 48;
  for (int run = 0; run < 8; ++run) {
    const auto [scale, minimum] = UnpackScale(block + 4, run);
    const float step = d * static_cast<float>(scale);
    const float offset = dmin * static_cast<float>(minimum);
    for (int i = 0; i < 32; ++i) {
      const int low = values[run / 2 * 32 + i] >> (run % 2 * 4) & 15;
      const int value = low | (fifth_bits[i] >> run & 1) << 4;
      out[run * 32 + i] = step * static_cast<float>(value) - offset;
    }
  }
}

void DecodeQ6K(const uint8_t* block, float* out) {
  const uint8_t* low_bits = block;
  const uint8_t* high_bits = block + 128;
  const uint8_t* scales = block + 192;
  const float d = LoadHalf(block + 208);
  for (int i = 0; i < kSuperBlock; ++i) {
    const int half = i / 128;
    const int place = i % 128;
    const int low = low_bits[half * 64 + place % 64] >> (place / 64 * 4) & 15;
    const int high = high_bits[half * 32 + place % 32] >> (place / 32 * 2) & 3;
    out[i] =
        d * static_cast<float>(Signed(scales[i / 16])) * static_cast<float>((low | high << 4) - 32);
  }
}

// The values of the 4 bits of IQ4_NL and IQ4_XS.
constexpr std::array<float, 16> kIq4Values = {-127, -104, -83, -65, -49, -35, -22, -10,
                                              1,    13,   25,  38,  53,  69,  89,  113};

void DecodeIq4Run(const uint8_t* values, float scale, float* out) {
  for (int i = 0; i < 16; ++i) {
    out[i] = scale * kIq4Values[values[i] & 15];
    out[i + 16] = scale * kIq4Values[values[i] >> 4];
  }
}

void DecodeIq4Nl(const uint8_t* block, float* out) {
  DecodeIq4Run(block + 2, LoadHalf(block), out);
}

// Eight runs of 32 with 6-bit scales: two high bits of each in 16 bits, then four low ones.
void DecodeIq4Xs(const uint8_t* block, float* out) {
  const float d = LoadHalf(block);
  const int high_bits = Load16(block + 2);
  const uint8_t* low_bits = block + 4;
  for (int run = 0; run < 8; ++run) {
    const int low = low_bits[run / 2] >> (run % 2 * 4) & 15;
    const int scale = (low | (high_bits >> (run * 2) & 3) << 4) - 32;
    DecodeIq4Run(block + 8 + run * 16, d * static_cast<float>(scale), out + run * 32);
  }
}

constexpr std::array kTypes = {
    GgmlType{0, "F32", 1, 4, DecodeF32},
    GgmlType{1, "F16", 1, 2, DecodeF16},
    GgmlType{2, "Q4_0", 32, 18, DecodeQ4_0},
    GgmlType{3, "Q4_1", 32, 20, DecodeQ4_1},
    GgmlType{6, "Q5_0", 32, 22, DecodeQ5_0},
    GgmlType{7, "Q5_1", 32, 24, DecodeQ5_1},
    GgmlType{8, "Q8_0", 32, 34, DecodeQ8_0},
    GgmlType{10, "Q2_K", kSuperBlock, 84, DecodeQ2K},
    GgmlType{11, "Q3_K", kSuperBlock, 110, DecodeQ3K},
    GgmlType{12, "Q4_K", kSuperBlock, 144, DecodeQ4K},
    GgmlType{13, "Q5_K", kSuperBlock, 176, DecodeQ5K},
    GgmlType{14, "Q6_K", kSuperBlock, 210, DecodeQ6K},
    GgmlType{15, "Q8_K", kSuperBlock, 292, nullptr},
    GgmlType{16, "IQ2_XXS", kSuperBlock, 66, nullptr},
    GgmlType{17, "IQ2_XS", kSuperBlock, 74, nullptr},
    GgmlType{18, "IQ3_XXS", kSuperBlock, 98, nullptr},
    GgmlType{19, "IQ1_S", kSuperBlock, 50, nullptr},
    GgmlType{20, "IQ4_NL", 32, 18, DecodeIq4Nl},
    GgmlType{21, "IQ3_S", kSuperBlock, 110, nullptr},
    GgmlType{22, "IQ2_S", kSuperBlock, 82, nullptr},
    GgmlType{23, "IQ4_XS", kSuperBlock, 136, DecodeIq4Xs},
    GgmlType{24, "I8", 1, 1, nullptr},
    GgmlType{25, "I16", 1, 2, nullptr},
    GgmlType{26, "I32", 1, 4, nullptr},
    GgmlType{27, "I64", 1, 8, nullptr},
    GgmlType{28, "F64", 1, 8, nullptr},
    GgmlType{29, "IQ1_M", kSuperBlock, 56, nullptr},
    GgmlType{30, "BF16", 1, 2, DecodeBf16},
    GgmlType{34, "TQ1_0", kSuperBlock, 54, nullptr},
    GgmlType{35, "TQ2_0", kSuperBlock, 66, nullptr},
    GgmlType{39, "MXFP4", 32, 17, nullptr},
    GgmlType{40, "NVFP4", 64, 36, nullptr},
    GgmlType{41, "Q1_0", 128, 18, nullptr},
};

}  // namespace

const GgmlType* FindGgmlType(uint32_t id) {
  for (const GgmlType& type : kTypes) {
    if (type.id == id) return &type;
  }
  return nullptr;
}

std::string SupportedGgmlTypes() {
  std::vector<std::string> names;
  for (const GgmlType& type : kTypes) {
    if (type.decode != nullptr) names.emplace_back(type.name);
  }
  return absl::StrJoin(names, ", ");
}

}  // namespace ultrasketch
