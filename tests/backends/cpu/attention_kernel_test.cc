// The attention of every instruction set against a softmax in double precision, over caches of
// every type whose unused slots are NaN; and all instruction sets against each other.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/backends/cpu/cpu_kernels.h"
#include "engine/backends/cpu/store_in_cache.h"
#include "engine/base/random.h"
#include "engine/kv/cache_layout.h"
#include "engine/kv/int4_row.h"
#include "engine/kv/int8_row.h"
#include "tests/base/guarded_buffer.h"

namespace ultrasketch {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

CpuKernels::AttendFunction* AttendFunctionFor(const CpuKernels& kernels, KvCacheType type) {
  switch (type) {
    case KvCacheType::kFp16:
      return kernels.attend_fp16;
    case KvCacheType::kInt8:
      return kernels.attend_int8;
    case KvCacheType::kInt4:
      return kernels.attend_int4;
    case KvCacheType::kFp32:
      return kernels.attend_fp32;
  }
  return nullptr;
}

// A layer's cache, one sequence in it whose blocks lie in no order, and queries of one head.
struct Setting {
  int64_t head_dim = 64;
  int64_t block_size = 16;
  int64_t num_kv_heads = 2;
  int64_t kv_head = 1;
  int64_t num_cached = 0;  // before the first token of the tile
  int64_t num_tokens = 1;  // each with queries_per_token
  int64_t queries_per_token = 1;
  double query_deviation = 1;
  double key_offset = 0;
  KvCacheType cache_type = KvCacheType::kFp32;
};

std::string Describe(const Setting& s) {
  return "head_dim " + std::to_string(s.head_dim) + ", block_size " + std::to_string(s.block_size) +
         ", " + std::to_string(s.num_cached) + " cached, " + std::to_string(s.num_tokens) +
         " tokens of " + std::to_string(s.queries_per_token) + " queries, " +
         KvCacheTypeName(s.cache_type);
}

class Sequence {
 public:
  explicit Sequence(const Setting& setting, uint64_t seed = 1)
      : setting_(setting),
        num_keys_(setting.num_cached + setting.num_tokens),
        num_blocks_((num_keys_ + setting.block_size - 1) / setting.block_size + 2),
        cache_(num_blocks_ * setting.num_kv_heads * HeadBytes() / 4),
        blocks_(num_blocks_ - 2) {
    // NaN as a float and as a bfloat16.
    std::memset(cache_.data(), 0xff, static_cast<size_t>(cache_.size()) * sizeof(float));
    // The last block is in use, so that what is read beyond it is beyond the cache.
    for (int64_t i = 0; i < blocks_.size(); ++i) {
      blocks_[i] = static_cast<int32_t>(num_blocks_ - 1 - i);
    }
    const auto normal = [&](uint64_t stream, int64_t index) {
      return NormalDouble(seed, stream, static_cast<uint64_t>(index));
    };
    const int64_t head_dim = setting.head_dim;
    for (int64_t position = 0; position < num_keys_; ++position) {
      for (int64_t d = 0; d < head_dim; ++d) {
        const int64_t index = position * head_dim + d;
        k_.push_back(static_cast<float>(normal(1, index) + setting.key_offset));
        v_.push_back(static_cast<float>(normal(2, index)));
      }
      Store(position);
    }
    for (int64_t i = 0; i < NumQueries() * head_dim; ++i) {
      q_.push_back(static_cast<float>(setting.query_deviation * normal(3, i)));
    }
  }

  int64_t NumQueries() const { return setting_.num_tokens * setting_.queries_per_token; }
  int64_t NumKeys(int64_t query) const {
    return setting_.num_cached + query / setting_.queries_per_token + 1;
  }

  // Stores another key or value in place of that of a position.
  void Replace(int64_t position, bool is_key, float value) {
    std::vector<float>& all = is_key ? k_ : v_;
    std::fill_n(all.begin() + position * setting_.head_dim, setting_.head_dim, value);
    Store(position);
  }

  // Queries [first, first + count) in one tile; the result [count][head_dim].
  std::vector<float> Attend(const CpuKernels& kernels, int64_t first, int64_t count) const {
    const int64_t head_dim = setting_.head_dim;
    GuardedBuffer<float> output(count * head_dim);
    std::fill(output.begin(), output.end(), kNaN);
    GuardedBuffer<float> queries(
        std::vector<float>(q_.begin() + first * head_dim, q_.begin() + (first + count) * head_dim));
    GuardedBuffer<float> scores(AttentionTile::kMaxQueries * kAttentionChunk);
    std::fill(scores.begin(), scores.end(), kNaN);
    std::vector<const float*> query_pointers;
    std::vector<float*> outputs;
    std::vector<int64_t> num_keys;
    for (int64_t i = 0; i < count; ++i) {
      query_pointers.push_back(queries.data() + i * head_dim);
      outputs.push_back(output.data() + i * head_dim);
      num_keys.push_back(NumKeys(first + i));
    }
    AttentionTile tile;
    tile.cache = reinterpret_cast<const uint8_t*>(cache_.data());
    tile.blocks = blocks_.data();
    tile.num_kv_heads = setting_.num_kv_heads;
    tile.kv_head = setting_.kv_head;
    tile.block_size = setting_.block_size;
    tile.head_dim = head_dim;
    tile.scale = 1 / std::sqrt(static_cast<float>(head_dim));
    tile.num_queries = count;
    tile.queries = query_pointers.data();
    tile.num_keys = num_keys.data();
    tile.outputs = outputs.data();
    if (IsInt4()) RotateRows(queries.data(), count);
    AttendFunctionFor(kernels, setting_.cache_type)(tile, scores.data());
    if (IsInt4()) RotateRows(output.data(), count);
    return std::vector<float>(output.begin(), output.end());
  }

  std::vector<double> Reference(int64_t query) const {
    const int64_t head_dim = setting_.head_dim;
    const double scale = double{1 / std::sqrt(static_cast<float>(head_dim))};
    std::vector<double> scores;
    for (int64_t position = 0; position < NumKeys(query); ++position) {
      double score = 0;
      for (int64_t d = 0; d < head_dim; ++d) {
        score += double{q_[static_cast<size_t>(query * head_dim + d)]} *
                 double{k_[static_cast<size_t>(position * head_dim + d)]};
      }
      scores.push_back(score * scale);
    }
    const double largest = *std::max_element(scores.begin(), scores.end());
    double total = 0;
    std::vector<double> result(static_cast<size_t>(head_dim), 0.0);
    for (size_t position = 0; position < scores.size(); ++position) {
      const double weight = std::exp(scores[position] - largest);
      total += weight;
      for (size_t d = 0; d < result.size(); ++d) {
        result[d] += weight * double{v_[position * result.size() + d]};
      }
    }
    for (double& value : result) value /= total;
    return result;
  }

 private:
  bool IsInt4() const { return setting_.cache_type == KvCacheType::kInt4; }
  int64_t TokenBytes() const {
    switch (setting_.cache_type) {
      case KvCacheType::kFp16:
        return Fp16TokenBytes(setting_.head_dim);
      case KvCacheType::kInt8:
        return Int8TokenBytes(setting_.head_dim);
      case KvCacheType::kInt4:
        return Int4TokenBytes(setting_.head_dim);
      case KvCacheType::kFp32:
        return Fp32TokenBytes(setting_.head_dim);
    }
    return 0;
  }
  // Of a block and head.
  int64_t HeadBytes() const { return setting_.block_size * TokenBytes(); }

  void RotateRows(float* rows, int64_t count) const {
    for (int64_t i = 0; i < count; ++i) {
      RotateRow({rows + i * setting_.head_dim, static_cast<size_t>(setting_.head_dim)});
    }
  }

  // Of k_ and v_. What the cache's type makes of them is what
  // the reference sees.
  void Store(int64_t position) {
    KvCacheLayout layout;
    layout.block_size = static_cast<int>(setting_.block_size);
    layout.type = setting_.cache_type;
    const int64_t block = blocks_.data()[position / setting_.block_size];
    auto* const start = reinterpret_cast<uint8_t*>(cache_.data()) +
                        (block * setting_.num_kv_heads + setting_.kv_head) * HeadBytes();
    for (const bool is_key : {true, false}) {
      std::vector<float>& all = is_key ? k_ : v_;
      const absl::Span<float> row =
          absl::MakeSpan(all).subspan(static_cast<size_t>(position * setting_.head_dim),
                                      static_cast<size_t>(setting_.head_dim));
      (is_key ? stored_key_ : stored_value_).assign(row.begin(), row.end());
      MakeStored(row);
    }
    StoreInCache(layout, absl::MakeSpan(stored_key_), absl::MakeSpan(stored_value_), start,
                 position % setting_.block_size);
  }

  // `row` as the cache's type has it.
  void MakeStored(absl::Span<float> row) const {
    switch (setting_.cache_type) {
      case KvCacheType::kFp32:
        return;
      case KvCacheType::kFp16:
        for (float& value : row) {
          // 11 bits, of normal numbers; ties to even.
          int exponent;
          std::frexp(value, &exponent);
          const float unit = std::ldexp(1.0f, std::max(exponent - 11, -24));
          value = std::clamp(std::nearbyint(value / unit) * unit, -65504.0f, 65504.0f);
        }
        return;
      case KvCacheType::kInt8: {
        std::vector<int8_t> bytes(row.size());
        const float scale = ScaleOf(RoundToInt8(row, bytes.data()));
        for (size_t i = 0; i < row.size(); ++i) row[i] = bytes[i] * scale;
        return;
      }
      case KvCacheType::kInt4:
        RotateRow(row);
        for (size_t first = 0; first < row.size(); first += kInt4Group) {
          const absl::Span<float> group = row.subspan(first, kInt4Group);
          uint8_t codes[kInt4Group];
          const float scale = ScaleOf(RoundToInt4(group, codes));
          for (size_t i = 0; i < group.size(); ++i) group[i] = kInt4Levels[codes[i]] * scale;
        }
        RotateRow(row);
        return;
    }
  }

  Setting setting_;
  int64_t num_keys_;
  int64_t num_blocks_;
  GuardedBuffer<float> cache_;
  GuardedBuffer<int32_t> blocks_;
  std::vector<float> q_;
  std::vector<float> k_;
  std::vector<float> v_;
  std::vector<float> stored_key_;
  std::vector<float> stored_value_;
};

class AttentionKernelTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    kernels_ = FindCpuKernels(GetParam());
    if (kernels_ == nullptr) GTEST_SKIP() << "this processor has no " << GetParam();
  }

  void ExpectMatches(const Setting& setting, double tolerance = 4e-6) {
    for (const KvCacheType type : kKvCacheTypes) {
      Setting of_type = setting;
      of_type.cache_type = type;
      ExpectMatchesOfType(of_type, tolerance);
      if (HasFatalFailure()) return;
    }
  }

  void ExpectMatchesOfType(const Setting& setting, double tolerance) {
    const Sequence sequence(setting);
    const int64_t count = sequence.NumQueries();
    const std::vector<float> output = sequence.Attend(*kernels_, 0, count);
    for (int64_t query = 0; query < count; ++query) {
      const std::vector<double> expected = sequence.Reference(query);
      for (int64_t d = 0; d < setting.head_dim; ++d) {
        ASSERT_NEAR(output[static_cast<size_t>(query * setting.head_dim + d)],
                    expected[static_cast<size_t>(d)], tolerance)
            << Describe(setting) << ": query " << query << ", dimension " << d;
      }
    }
  }

  const CpuKernels* kernels_ = nullptr;
};

TEST_P(AttentionKernelTest, MatchesForEveryHeadDimAndLength) {
  for (const int64_t head_dim : {2, 10, 40, 64, 80, 128, 160, 256}) {
    for (const int64_t block_size : {16, 32}) {
      for (const int64_t num_keys :
           {1, 2, 15, 16, 17, 31, 33, 100, 255, 256, 257, 272, 511, 512, 513, 600}) {
        Setting setting;
        setting.head_dim = head_dim;
        setting.block_size = block_size;
        setting.num_cached = num_keys - 1;
        setting.queries_per_token = 1 + num_keys % 5;
        ExpectMatches(setting);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(AttentionKernelTest, HidesLaterTokensOfATile) {
  for (const int64_t queries_per_token : {1, 2, 3, 5, 8, 16}) {
    for (const int64_t num_cached : {0, 1, 13, 240, 250, 255, 256, 505}) {
      Setting setting;
      setting.head_dim = 48;
      setting.queries_per_token = queries_per_token;
      setting.num_tokens = AttentionTile::kMaxQueries / queries_per_token;
      setting.num_cached = num_cached;
      ExpectMatches(setting);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(AttentionKernelTest, MatchesForBlocksThatChunksDoNotDivide) {
  for (const int64_t block_size : {48, 80, 256, 512}) {
    Setting setting;
    setting.block_size = block_size;
    setting.num_cached = 590;
    setting.num_tokens = 5;
    setting.num_kv_heads = 3;
    ExpectMatches(setting);
  }
}

// A softmax that is all but one key: large scores, of either sign, overflow nothing.
TEST_P(AttentionKernelTest, TakesLargeScores) {
  for (const double deviation : {30.0, 1e3, 1e6}) {
    for (const double offset : {0.0, -20.0, 20.0}) {
      Setting setting;
      setting.head_dim = 64;
      setting.num_cached = 400;
      setting.num_tokens = 4;
      setting.query_deviation = deviation;
      setting.key_offset = offset;
      const Sequence sequence(setting);
      const std::vector<float> output = sequence.Attend(*kernels_, 0, sequence.NumQueries());
      for (int64_t query = 0; query < sequence.NumQueries(); ++query) {
        const std::vector<double> expected = sequence.Reference(query);
        for (size_t d = 0; d < expected.size(); ++d) {
          // Scores are rounded to float, and their errors are amplified by the exponential.
          ASSERT_NEAR(output[static_cast<size_t>(query) * expected.size() + d], expected[d],
                      1e-6 * deviation * (1 + std::fabs(offset)))
              << deviation << " " << offset;
        }
      }
    }
  }
}

// A query's result has the same bits alone and beside others, in whatever tile.
TEST_P(AttentionKernelTest, GivesTheSameBitsInEveryTile) {
  for (const KvCacheType type : kKvCacheTypes) {
    Setting setting;
    setting.head_dim = 80;
    setting.num_cached = 245;
    setting.num_tokens = 16;
    setting.cache_type = type;
    const Sequence sequence(setting);
    const std::vector<float> together = sequence.Attend(*kernels_, 0, 16);
    for (int64_t count = 1; count < 16; ++count) {
      for (int64_t first = 0; first + count <= 16; ++first) {
        const std::vector<float> part = sequence.Attend(*kernels_, first, count);
        ASSERT_TRUE(std::equal(part.begin(), part.end(), together.begin() + first * 80))
            << Describe(setting) << ": queries from " << first << ", " << count;
      }
    }
  }
}

TEST_P(AttentionKernelTest, GivesTheBitsOfThePortableKernels) {
  for (const int64_t head_dim : {2, 10, 40, 64, 80, 128, 160, 256}) {
    for (const int64_t queries_per_token : {1, 2, 3, 4, 5}) {
      for (const KvCacheType type : kKvCacheTypes) {
        Setting setting;
        setting.head_dim = head_dim;
        setting.num_cached = 300;
        setting.num_tokens = 3;
        setting.queries_per_token = queries_per_token;
        setting.query_deviation = 3;
        setting.cache_type = type;
        const Sequence sequence(setting);
        const int64_t count = sequence.NumQueries();
        ASSERT_EQ(sequence.Attend(*kernels_, 0, count),
                  sequence.Attend(kPortableCpuKernels, 0, count))
            << Describe(setting);
      }
    }
  }
}

// Queries that do not see a key are not touched by what it holds, nor are other sequences.
TEST_P(AttentionKernelTest, WhatIsNotFiniteStaysWithThoseThatSeeIt) {
  for (const KvCacheType type : kKvCacheTypes) {
    for (const bool is_key : {true, false}) {
      for (const float bad : {kInfinity, -kInfinity, kNaN}) {
        Setting setting;
        setting.num_cached = 30;
        setting.num_tokens = 8;
        setting.cache_type = type;
        Sequence sequence(setting);
        const std::vector<float> expected = sequence.Attend(*kernels_, 0, 8);
        sequence.Replace(34, is_key, bad);  // seen by the queries from 4 on
        const std::vector<float> found = sequence.Attend(*kernels_, 0, 8);
        ASSERT_TRUE(std::equal(found.begin(), found.begin() + 4 * 64, expected.begin()))
            << Describe(setting);
        if (!is_key) {
          for (size_t i = 4 * 64; i < found.size(); ++i) {
            ASSERT_FALSE(std::isfinite(found[i])) << Describe(setting);
          }
        }
      }
    }
  }
}

TEST_P(AttentionKernelTest, TakesZerosAndHugeNumbers) {
  for (const KvCacheType type : kKvCacheTypes) {
    Setting setting;
    setting.num_cached = 40;
    setting.num_tokens = 1;
    setting.cache_type = type;
    for (const float key : {0.0f, 1e4f, 1e30f}) {
      Sequence sequence(setting);
      for (int64_t position = 0; position < 41; ++position) sequence.Replace(position, true, key);
      for (int64_t position = 0; position < 41; ++position) {
        sequence.Replace(position, false, position % 2 == 0 ? 0.0f : 1000.0f);
      }
      // All scores are the same: the mean. Rows that are rotated to a single number are what int4
      // rounds worst.
      for (const float value : sequence.Attend(*kernels_, 0, 1)) {
        ASSERT_TRUE(std::isfinite(value)) << Describe(setting) << ", keys of " << key;
        if (type == KvCacheType::kInt4) continue;
        ASSERT_NEAR(value, 1000.0 * 20 / 41, 8) << Describe(setting) << ", keys of " << key;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, AttentionKernelTest, ::testing::Values("avx512", "avx2", "portable"));

}  // namespace
}  // namespace ultrasketch
