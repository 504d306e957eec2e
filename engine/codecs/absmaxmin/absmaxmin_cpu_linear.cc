#include "engine/codecs/absmaxmin/absmaxmin_cpu_linear.h"

#include <algorithm>
#include <cstring>

namespace ultrasketch {

using absmaxmin_internal::AbsMaxMinColumns;
using absmaxmin_internal::AbsMaxMinKernels;
using absmaxmin_internal::kChunkColumns;
using absmaxmin_internal::kMaxAbsMaxMinInteger;
using absmaxmin_internal::kRowsPerBlock;

namespace {

int64_t CodesPerWord(const AbsMaxMinClass& sketch_class) { return 16 / sketch_class.bits; }

// Of a hash row.
int64_t NumWords(const AbsMaxMinClass& sketch_class) {
  return (sketch_class.buckets + CodesPerWord(sketch_class) - 1) / CodesPerWord(sketch_class);
}

// Integers from one token to the next. A chunk of the columns of many tokens is read together: they
// lie in different sets of an L1 cache, whose sets repeat every 4 KiB.
int64_t IntegerStride(int64_t padded_cols) {
  constexpr int64_t kSetsRepeat = 4096 / int64_t{sizeof(int16_t)};
  constexpr int64_t kApart = kChunkColumns + 64 / int64_t{sizeof(int16_t)};
  return (padded_cols + kSetsRepeat - kApart - 1) / kSetsRepeat * kSetsRepeat + kApart;
}

}  // namespace

AbsMaxMinCpuLinear::AbsMaxMinCpuLinear(const AbsMaxMinLinear& linear,
                                       const AbsMaxMinKernels& kernels)
    : layout_(linear.layout()), kernels_(kernels), scales_(linear.Scales()) {
  size_t num_offsets = 0;
  for (const AbsMaxMinClass& sketch_class : layout_.classes()) {
    words_per_row_ += sketch_class.hash_rows * NumWords(sketch_class);
    num_offsets += static_cast<size_t>(sketch_class.hash_rows * sketch_class.num_columns);
  }
  offsets_.reserve(num_offsets);
  for (int64_t index = 0; index < layout_.num_classes(); ++index) {
    const AbsMaxMinClass& sketch_class = layout_.classes()[static_cast<size_t>(index)];
    parts_.push_back({sketch_class.num_columns, sketch_class.hash_rows, sketch_class.unit(),
                      offsets_.data() + offsets_.size()});
    padded_cols_ += parts_.back().padded_columns();
    for (int64_t hash_row = 0; hash_row < sketch_class.hash_rows; ++hash_row) {
      for (const int32_t bucket : layout_.BucketsOf(index, hash_row)) {
        offsets_.push_back(static_cast<int32_t>(bucket * kRowsPerBlock));
      }
    }
  }
  const int64_t num_blocks = (rows() + kRowsPerBlock - 1) / kRowsPerBlock;
  words_.resize(static_cast<size_t>(num_blocks * kRowsPerBlock * words_per_row_), 0);
  std::vector<int8_t> levels(static_cast<size_t>(layout_.num_buckets()));
  for (int64_t row = 0; row < rows(); ++row) {
    linear.UnpackRow(row, levels.data());
    PackRow(row, levels.data());
  }
}

void AbsMaxMinCpuLinear::PackRow(int64_t row, const int8_t* levels) {
  uint16_t* words =
      words_.data() + row / kRowsPerBlock * kRowsPerBlock * words_per_row_ + row % kRowsPerBlock;
  for (const AbsMaxMinClass& sketch_class : layout_.classes()) {
    const uint32_t mask = (1u << sketch_class.bits) - 1;
    for (int64_t hash_row = 0; hash_row < sketch_class.hash_rows; ++hash_row) {
      for (int64_t bucket = 0; bucket < sketch_class.buckets; ++bucket) {
        const int64_t word = bucket / CodesPerWord(sketch_class);
        const int64_t shift = bucket % CodesPerWord(sketch_class) * sketch_class.bits;
        words[word * kRowsPerBlock] |=
            static_cast<uint16_t>((static_cast<uint32_t>(*levels++) & mask) << shift);
      }
      words += NumWords(sketch_class) * kRowsPerBlock;
    }
  }
}

int64_t AbsMaxMinCpuLinear::prepared_width() const {
  const int64_t num_bytes =
      static_cast<int64_t>(sizeof(RoundedInput)) + padded_cols_ * int64_t{sizeof(int16_t)};
  return num_bytes / static_cast<int64_t>(sizeof(float));
}

void AbsMaxMinCpuLinear::PrepareInput(const float* x, float* prepared) const {
  thread_local std::vector<float> placed;
  thread_local std::vector<int16_t> integers;
  placed.resize(static_cast<size_t>(padded_cols_));
  integers.resize(static_cast<size_t>(padded_cols_));
  const int32_t* column = layout_.columns().data();
  float* out = placed.data();
  for (const Part& part : parts_) {
    for (int64_t i = 0; i < part.num_columns; ++i) *out++ = x[*column++];
    if (part.num_columns % 2 != 0) *out++ = 0.0f;
  }
  const RoundedInput input = kernels_.round(placed.data(), padded_cols_, padded_cols_,
                                            kMaxAbsMaxMinInteger, integers.data());
  auto* const bytes = reinterpret_cast<uint8_t*>(prepared);
  std::memcpy(bytes, &input, sizeof(input));
  std::memcpy(bytes + sizeof(input), integers.data(), integers.size() * sizeof(int16_t));
}

void AbsMaxMinCpuLinear::UnpackBlock(int64_t block, int16_t* keys) const {
  const uint16_t* words = words_.data() + block * kRowsPerBlock * words_per_row_;
  for (const AbsMaxMinClass& sketch_class : layout_.classes()) {
    for (int64_t hash_row = 0; hash_row < sketch_class.hash_rows; ++hash_row) {
      kernels_.unpack(words, sketch_class.buckets, sketch_class.bits, hash_row, keys);
      words += NumWords(sketch_class) * kRowsPerBlock;
      keys += sketch_class.buckets * kRowsPerBlock;
    }
  }
}

void AbsMaxMinCpuLinear::MultiplyBlock(const int16_t* keys, const int16_t* integers,
                                       int64_t integer_stride, int64_t num_tokens,
                                       float* sums) const {
  int16_t weights[kChunkColumns * kRowsPerBlock];
  for (const Part& part : parts_) {
    for (int64_t first = 0; first < part.num_columns; first += kChunkColumns) {
      const int64_t count = std::min(kChunkColumns, part.num_columns - first);
      const AbsMaxMinColumns columns = {part.offsets + first, part.num_columns, part.hash_rows,
                                        count};
      if (num_tokens == 1) {
        kernels_.decode_multiply(keys, columns, integers + first, part.unit, sums);
      } else {
        kernels_.decode(keys, columns, weights);
        kernels_.multiply(weights, count, integers + first, integer_stride, num_tokens, part.unit,
                          sums);
      }
    }
    integers += part.padded_columns();
  }
}

void AbsMaxMinCpuLinear::Multiply(const float* prepared, int64_t num_tokens, bool accumulate,
                                  float* y, ThreadPool& pool) const {
  if (num_tokens == 0) return;
  // The integers as such, which are written as bytes.
  std::vector<RoundedInput> inputs(static_cast<size_t>(num_tokens));
  const int64_t integer_stride = IntegerStride(padded_cols_);
  std::vector<int16_t> integers(static_cast<size_t>(num_tokens * integer_stride));
  for (int64_t token = 0; token < num_tokens; ++token) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(prepared + token * prepared_width());
    std::memcpy(&inputs[static_cast<size_t>(token)], bytes, sizeof(RoundedInput));
    std::memcpy(integers.data() + token * integer_stride, bytes + sizeof(RoundedInput),
                static_cast<size_t>(padded_cols_) * sizeof(int16_t));
  }
  const int64_t num_blocks = (rows() + kRowsPerBlock - 1) / kRowsPerBlock;
  pool.ParallelFor(num_blocks, 1, [&](int64_t begin, int64_t end, int) {
    thread_local std::vector<int16_t> keys;
    thread_local std::vector<float> sums;
    keys.resize(std::max(keys.size(), static_cast<size_t>(layout_.num_buckets() * kRowsPerBlock)));
    for (int64_t block = begin; block < end; ++block) {
      UnpackBlock(block, keys.data());
      sums.assign(static_cast<size_t>(num_tokens * kRowsPerBlock), 0.0f);
      MultiplyBlock(keys.data(), integers.data(), integer_stride, num_tokens, sums.data());
      const int64_t first_row = block * kRowsPerBlock;
      const int64_t num_rows = std::min(kRowsPerBlock, rows() - first_row);
      for (int64_t token = 0; token < num_tokens; ++token) {
        const float* token_sums = sums.data() + token * kRowsPerBlock;
        const float* scales = scales_.data() + first_row;
        const float input_scale = inputs[static_cast<size_t>(token)].scale;
        float* out = y + token * rows() + first_row;
        for (int64_t row = 0; row < num_rows; ++row) {
          out[row] = (accumulate ? out[row] : 0.0f) + scales[row] * (input_scale * token_sums[row]);
        }
      }
    }
  });
}

int64_t AbsMaxMinCpuLinear::resident_bytes() const {
  // The layout's tables beside the kernels' own.
  return static_cast<int64_t>(words_.size() * sizeof(uint16_t) + scales_.size() * sizeof(float) +
                              2 * offsets_.size() * sizeof(int32_t) +
                              layout_.columns().size() * sizeof(int32_t));
}

}  // namespace ultrasketch
