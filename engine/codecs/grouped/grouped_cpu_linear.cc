#include "engine/codecs/grouped/grouped_cpu_linear.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "engine/base/mapped_pages.h"
#include "engine/base/shared_loop.h"

namespace ultrasketch {
namespace {

GroupedMultiply KernelFor(const GroupedTable& table, const GroupedKernels& kernels) {
  const bool is_half = table.scales().dtype == DType::kF16;
  if (table.type() == GroupedType::kInt8) {
    return is_half ? kernels.multiply_int8_f16 : kernels.multiply_int8_bf16;
  }
  return is_half ? kernels.multiply_int4_f16 : kernels.multiply_int4_bf16;
}

// Bytes of a prepared token, of which num_bytes are used. The same columns of several tokens are
// read together: tokens are so far apart that these lie in different sets of an L1 cache, whose
// sets repeat every 4 KiB.
int64_t TokenBytes(int64_t num_bytes) {
  constexpr int64_t kSetsRepeat = 4096;
  constexpr int64_t kApart = 1088;  // or less than a whole number of repetitions by 960
  const int64_t place = num_bytes % kSetsRepeat;
  const int64_t next = place <= kApart                     ? kApart
                       : place <= kApart + kSetsRepeat / 2 ? kApart + kSetsRepeat / 2
                                                           : kApart + kSetsRepeat;
  return num_bytes - place + next;
}

// A row's integers, of `num_bytes` bytes, to the words of a strip whose first is `words`.
void PackInt8(const uint8_t* row, int64_t num_bytes, uint8_t* words) {
  constexpr int64_t kStep = kInt8StepColumns;
  for (int64_t first = 0; first < num_bytes; first += kStep, words += 4 * kGroupedStripRows) {
    uint8_t bytes[kStep] = {};
    std::memcpy(bytes, row + first, static_cast<size_t>(std::min(kStep, num_bytes - first)));
    for (uint8_t& byte : bytes) byte ^= 0x80;  // plus 128
    const uint8_t packed[] = {bytes[0], bytes[2], bytes[1], bytes[3]};
    std::memcpy(words, packed, sizeof(packed));
  }
}

void PackInt4(const uint8_t* row, int64_t num_bytes, uint8_t* words) {
  constexpr int64_t kStep = kInt4StepColumns / 2;
  for (int64_t first = 0; first < num_bytes; first += kStep, words += 4 * kGroupedStripRows) {
    uint8_t bytes[kStep] = {};
    std::memcpy(bytes, row + first, static_cast<size_t>(std::min(kStep, num_bytes - first)));
    uint8_t packed[kStep];
    for (int64_t pair = 0; pair < kStep / 2; ++pair) {
      const uint8_t even = bytes[2 * pair] ^ 0x88;  // plus 8
      const uint8_t odd = bytes[2 * pair + 1] ^ 0x88;
      packed[pair] = static_cast<uint8_t>((even & 15) | (odd & 15) << 4);
      packed[kStep / 2 + pair] = static_cast<uint8_t>(even >> 4 | (odd & 0xf0));
    }
    std::memcpy(words, packed, sizeof(packed));
  }
}

}  // namespace

GroupedCpuLinear::GroupedCpuLinear(const GroupedTable& table, const GroupedKernels& kernels)
    : kernels_(kernels),
      type_(table.type()),
      rows_(table.site().rows),
      cols_(table.site().cols),
      multiply_(KernelFor(table, kernels)) {
  const int64_t scale_bytes = PackedScaleBytes(num_groups());
  const int64_t row_bytes = GroupedRowBytes(type_, cols_);
  const int64_t group_bytes = GroupedRowBytes(type_, kGroupColumns) * kGroupedStripRows;
  const auto size = static_cast<size_t>(scale_bytes + num_groups() * group_bytes);
  strips_.resize(static_cast<size_t>(num_strips()) * size);
  for (int64_t row = 0; row < rows_; ++row) {
    uint8_t* const strip = strips_.data() + row / kGroupedStripRows * static_cast<int64_t>(size);
    const int64_t place = row % kGroupedStripRows;
    const uint8_t* scales = table.scales().data + 2 * row * num_groups();
    for (int64_t group = 0; group < num_groups(); ++group) {
      std::memcpy(strip + 2 * (group * kGroupedStripRows + place), scales + 2 * group, 2);
    }
    (type_ == GroupedType::kInt8 ? PackInt8 : PackInt4)(table.values().data + row * row_bytes,
                                                        row_bytes, strip + scale_bytes + 4 * place);
  }
  ReleaseMappedPages(table.values().data, table.values().num_bytes());
  ReleaseMappedPages(table.scales().data, table.scales().num_bytes());
}

int64_t GroupedCpuLinear::prepared_width() const {
  const int64_t num_bytes = kGroupedIntegersOffset + padded_cols() * int64_t{sizeof(int16_t)} +
                            num_groups() * int64_t{sizeof(int32_t)};
  return TokenBytes(num_bytes) / static_cast<int64_t>(sizeof(float));
}

void GroupedCpuLinear::PrepareInput(const float* x, float* prepared) const {
  thread_local std::vector<int16_t> integers;
  integers.resize(static_cast<size_t>(padded_cols()));
  const RoundedInput input =
      kernels_.round(x, cols(), padded_cols(), kMaxGroupedInteger, integers.data());
  auto* bytes = reinterpret_cast<uint8_t*>(prepared);
  std::memcpy(bytes, &input, sizeof(input));
  bytes += kGroupedIntegersOffset;
  std::memcpy(bytes, integers.data(), integers.size() * sizeof(int16_t));
  bytes += integers.size() * sizeof(int16_t);
  const int32_t offset = type_ == GroupedType::kInt8 ? kInt8Offset : kInt4Offset;
  const int16_t* of_group = integers.data();
  for (int64_t group = 0; group < num_groups(); ++group, of_group += kGroupColumns) {
    int32_t sum = 0;
    for (int64_t i = 0; i < kGroupColumns; ++i) sum += of_group[i];
    sum *= -offset;
    std::memcpy(bytes + group * int64_t{sizeof(sum)}, &sum, sizeof(sum));
  }
}

void GroupedCpuLinear::Multiply(const float* prepared, int64_t num_tokens, bool accumulate,
                                float* y, ThreadPool& pool) const {
  if (num_tokens == 0) return;
  const GroupedInputs inputs = {reinterpret_cast<const uint8_t*>(prepared),
                                prepared_width() * static_cast<int64_t>(sizeof(float))};
  SharedLoop(pool, rows(), kGroupedStripRows, [&](const auto& take) {
    int64_t begin;
    int64_t end;
    while (take(&begin, &end)) {
      multiply_(strips_.data() + begin / kGroupedStripRows * strip_bytes(), end - begin,
                num_groups(), inputs, num_tokens, accumulate, y + begin, rows());
    }
  });
}

}  // namespace ultrasketch
