// The product with a grouped table, for the instruction set of the file that includes this.
//
//   tile of a strip (16 rows) and T tokens; per pair of columns, in registers of 32 bytes (AVX2):
//     2 or 3 operations to take the pair out of the words of two loads
//     T loads that spread a pair of inputs, 2 * T multiply-adds of pairs and 2 * T additions
//   and per group and token 2 conversions, multiplications and additions of floats
//
// 8 operations for 64 products and another one for the words, four tokens at once: bound by them,
// three of which start in a cycle. One token: 12 (int4 14), bound by reading the table. A strip is
// read from memory once: a chunk of its columns stays in the L1 cache for all tokens, whose inputs
// lie in the L1 and L2 caches.
#ifndef ULTRASKETCH_ENGINE_CODECS_GROUPED_GROUPED_KERNELS_IMPL_H_
#define ULTRASKETCH_ENGINE_CODECS_GROUPED_GROUPED_KERNELS_IMPL_H_

#include "engine/codecs/grouped/grouped_kernels.h"
#include "engine/codecs/integer_vector.h"

namespace ultrasketch {
namespace {

// Registers of a strip's sums.
constexpr int64_t kPartRows = kPartBytes / 4;
constexpr int kRowParts = static_cast<int>(kGroupedStripRows / kPartRows);

constexpr int64_t kGroupWidth = 64;  // columns

// Each has two registers of sums, of 16, or with NEON four of 32.
#if defined(__x86_64__) && !defined(__AVX2__)
constexpr int kTileTokens = 2;
#else
constexpr int kTileTokens = 4;
#endif
constexpr int64_t kBlockTokens = 64;  // whose sums are kept together
constexpr int64_t kChunkGroups = 8;   // of columns, for several tokens

// The table is asked for this far ahead, in the order in which it lies.
constexpr int64_t kBytesAhead = 8192;

typedef uint16_t WordPart __attribute__((vector_size(kPartBytes)));
typedef uint16_t HalfWordPart __attribute__((vector_size(kPartBytes / 2)));
typedef uint32_t UnsignedPart __attribute__((vector_size(kPartBytes)));

inline WordPart LoadWords(const uint8_t* data) {
  WordPart words;
  __builtin_memcpy(&words, data, sizeof(words));
  return words;
}

inline IntPart Spread(const void* data) {
  int32_t word;
  __builtin_memcpy(&word, data, sizeof(word));
  return IntPart{} + word;
}

// Keeps a sum in its register here: compilers would add products of several pairs up before they
// add them to it, for which there are not registers enough.
inline void Settle(IntPart& sum) {
#if defined(__x86_64__)
  __asm__("" : "+x"(sum));
#elif defined(__aarch64__)
  __asm__("" : "+w"(sum));
#endif
}

// Integers of kBits bits in words of a packed table.
template <int kBits>
struct Packed {
  static constexpr int kStepPairs = 16 / kBits;  // of columns
  static constexpr int64_t kGroupSteps = kGroupWidth / 2 / kStepPairs;
  static constexpr int64_t kStepBytes = 4 * kGroupedStripRows;
  static constexpr int64_t kGroupBytes = kGroupSteps * kStepBytes;

  static ShortPart Pair(WordPart words, int pair) {
    const WordPart shifted = pair == 0 ? words : words >> (kBits * pair);
    return (ShortPart)(pair == kStepPairs - 1 ? shifted : shifted & uint16_t{(1 << kBits) - 1});
  }
};
static_assert(2 * Packed<8>::kStepPairs == kInt8StepColumns);
static_assert(2 * Packed<4>::kStepPairs == kInt4StepColumns);

inline UnsignedPart LoadHalfWords(const uint8_t* data) {
  HalfWordPart words;
  __builtin_memcpy(&words, data, sizeof(words));
  return __builtin_convertvector(words, UnsignedPart);
}

// Stored scales, which are at least 0, to floats.
struct Bf16Scales {
  static FloatPart Load(const uint8_t* stored) { return (FloatPart)(LoadHalfWords(stored) << 16); }
};

struct F16Scales {
  // Exponent and mantissa in place, the exponent's bias put right by a multiplication, which also
  // makes subnormals come out exactly.
  static FloatPart Load(const uint8_t* stored) {
    return (FloatPart)((LoadHalfWords(stored) & 0x7fff) << 13) * 0x1p112f;
  }
};

inline float InputScale(GroupedInputs inputs, int64_t token) {
  RoundedInput input;
  __builtin_memcpy(&input, inputs.data + token * inputs.stride, sizeof(input));
  return input.scale;
}

struct StripSums {
  FloatPart parts[kRowParts];
};

// Adds groups [first, last) of a strip and of kTokens tokens to `sums`.
template <typename Values, typename Scales, int kTokens, bool kPrefetches>
void AddGroups(const uint8_t* scales, const uint8_t* values, int64_t num_groups, int64_t first,
               int64_t last, GroupedInputs inputs, StripSums* sums) {
  for (int64_t group = first; group < last; ++group) {
    const auto integers = [&](int token) {
      return inputs.data + token * inputs.stride + kGroupedIntegersOffset;
    };
    IntPart products[kTokens][kRowParts];
#pragma GCC unroll 4
    for (int token = 0; token < kTokens; ++token) {
      const IntPart offset = Spread(integers(token) + 2 * num_groups * kGroupWidth + 4 * group);
#pragma GCC unroll 4
      for (int part = 0; part < kRowParts; ++part) products[token][part] = offset;
    }
    const uint8_t* bytes = values + group * Values::kGroupBytes;
    int64_t column_bytes = 2 * group * kGroupWidth;
    for (int64_t step = 0; step < Values::kGroupSteps; ++step) {
      if constexpr (kPrefetches) {
        __builtin_prefetch(bytes + kBytesAhead, /*rw=*/0, /*locality=*/2);
      }
      WordPart words[kRowParts];
#pragma GCC unroll 4
      for (int part = 0; part < kRowParts; ++part)
        words[part] = LoadWords(bytes + part * kPartBytes);
#pragma GCC unroll 4
      for (int pair = 0; pair < Values::kStepPairs; ++pair) {
        ShortPart weights[kRowParts];
#pragma GCC unroll 4
        for (int part = 0; part < kRowParts; ++part)
          weights[part] = Values::Pair(words[part], pair);
#pragma GCC unroll 4
        for (int token = 0; token < kTokens; ++token) {
          const auto spread = (ShortPart)Spread(integers(token) + column_bytes + 4 * pair);
#pragma GCC unroll 4
          for (int part = 0; part < kRowParts; ++part) {
            products[token][part] += MultiplyPairs(weights[part], spread);
            Settle(products[token][part]);
          }
        }
      }
      bytes += Values::kStepBytes;
      column_bytes += 4 * Values::kStepPairs;
    }
#pragma GCC unroll 4
    for (int part = 0; part < kRowParts; ++part) {
      const FloatPart scale =
          Scales::Load(scales + 2 * (group * kGroupedStripRows + part * kPartRows));
#pragma GCC unroll 4
      for (int token = 0; token < kTokens; ++token) {
        sums[token].parts[part] +=
            __builtin_convertvector(products[token][part], FloatPart) * scale;
      }
    }
  }
}

inline void WriteSums(const StripSums& sums, float input_scale, int64_t num_rows, bool accumulate,
                      float* y) {
  StripSums scaled;
#pragma GCC unroll 4
  for (int part = 0; part < kRowParts; ++part) scaled.parts[part] = sums.parts[part] * input_scale;
  float values[kGroupedStripRows];
  __builtin_memcpy(values, &scaled, sizeof(values));
  if (accumulate) {
    for (int64_t row = 0; row < num_rows; ++row) y[row] += values[row];
  } else {
    for (int64_t row = 0; row < num_rows; ++row) y[row] = values[row];
  }
}

template <typename Values, typename Scales>
void Multiply(const uint8_t* strips, int64_t num_rows, int64_t num_groups, GroupedInputs inputs,
              int64_t num_tokens, bool accumulate, float* y, int64_t y_stride) {
  const int64_t scale_bytes = PackedScaleBytes(num_groups);
  const int64_t strip_bytes = scale_bytes + num_groups * Values::kGroupBytes;
  const int64_t chunk_groups = num_tokens == 1 ? num_groups : kChunkGroups;
  for (int64_t first_token = 0; first_token < num_tokens; first_token += kBlockTokens) {
    const int64_t tokens_left = num_tokens - first_token;
    const int64_t block_tokens = tokens_left < kBlockTokens ? tokens_left : kBlockTokens;
    const GroupedInputs block = {inputs.data + first_token * inputs.stride, inputs.stride};
    for (int64_t row = 0; row < num_rows; row += kGroupedStripRows) {
      const uint8_t* scales = strips + row / kGroupedStripRows * strip_bytes;
      StripSums sums[kBlockTokens];
      __builtin_memset(sums, 0, static_cast<uint64_t>(block_tokens) * sizeof(*sums));
      for (int64_t first = 0; first < num_groups; first += chunk_groups) {
        const int64_t last = first + chunk_groups < num_groups ? first + chunk_groups : num_groups;
        int64_t token = 0;
        const auto add = [&]<int kTokens>() {
          for (; token + kTokens <= block_tokens; token += kTokens) {
            const GroupedInputs tile = {block.data + token * block.stride, block.stride};
            const auto add_groups = token == 0 ? AddGroups<Values, Scales, kTokens, true>
                                               : AddGroups<Values, Scales, kTokens, false>;
            add_groups(scales, scales + scale_bytes, num_groups, first, last, tile, sums + token);
          }
        };
        add.template operator()<kTileTokens>();
        if constexpr (kTileTokens > 2) add.template operator()<2>();
        add.template operator()<1>();
      }
      const int64_t rows = num_rows - row < kGroupedStripRows ? num_rows - row : kGroupedStripRows;
      for (int64_t token = 0; token < block_tokens; ++token) {
        WriteSums(sums[token], InputScale(block, token), rows, accumulate,
                  y + (first_token + token) * y_stride + row);
      }
    }
  }
}

}  // namespace
}  // namespace ultrasketch

// Defines the table of kernels called `variable`.
#define US_DEFINE_GROUPED_KERNELS(variable, name)                   \
  namespace ultrasketch {                                           \
  const GroupedKernels variable = {name,                            \
                                   RoundInput,                      \
                                   Multiply<Packed<8>, Bf16Scales>, \
                                   Multiply<Packed<8>, F16Scales>,  \
                                   Multiply<Packed<4>, Bf16Scales>, \
                                   Multiply<Packed<4>, F16Scales>}; \
  }

#endif  // ULTRASKETCH_ENGINE_CODECS_GROUPED_GROUPED_KERNELS_IMPL_H_
