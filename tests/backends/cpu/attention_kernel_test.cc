// The attention of every instruction set against a softmax in double precision, over caches of
// floats and of bytes whose unused slots are NaN.
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
#include "engine/base/random.h"
#include "engine/kv/cache_layout.h"
#include "engine/kv/int8_row.h"
#include "tests/base/guarded_buffer.h"

namespace ultrasketch {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

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
  KvCacheType cache_type = KvCacheType::kFloat;
};

std::string Describe(const Setting& s) {
  return "head_dim " + std::to_string(s.head_dim) + ", block_size " + std::to_string(s.block_size) +
         ", " + std::to_string(s.num_cached) + " cached, " + std::to_string(s.num_tokens) +
         " tokens of " + std::to_string(s.queries_per_token) + " queries, " +
         (s.cache_type == KvCacheType::kInt8 ? "int8" : "float");
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
    (IsInt8() ? kernels.attend_int8 : kernels.attend)(tile, scores.data());
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
  bool IsInt8() const { return setting_.cache_type == KvCacheType::kInt8; }
  // Of a block and head.
  int64_t HeadBytes() const {
    return setting_.block_size *
           (IsInt8() ? Int8TokenBytes(setting_.head_dim) : FloatTokenBytes(setting_.head_dim));
  }

  // The newest of k_ and v_, as position `position`. What is rounded on the way is what the
  // reference sees.
  void Store(int64_t position) {
    const int64_t head_dim = setting_.head_dim;
    const int64_t block_size = setting_.block_size;
    const int64_t slot = position % block_size;
    const int64_t block = blocks_.data()[position / block_size];
    auto* const start = reinterpret_cast<uint8_t*>(cache_.data()) +
                        (block * setting_.num_kv_heads + setting_.kv_head) * HeadBytes();
    float* const k = k_.data() + position * head_dim;
    float* const v = v_.data() + position * head_dim;
    if (!IsInt8()) {
      auto* const keys = reinterpret_cast<float*>(start);
      for (int64_t d = 0; d < head_dim; ++d) {
        keys[d * block_size + slot] = k[d];
        keys[(block_size + slot) * head_dim + d] = v[d];
      }
      return;
    }
    auto* const keys = reinterpret_cast<int8_t*>(start);
    auto* const scales = reinterpret_cast<uint16_t*>(keys + 2 * block_size * head_dim);
    std::vector<int8_t> row(static_cast<size_t>(head_dim));
    for (const bool is_key : {true, false}) {
      float* const values = is_key ? k : v;
      uint16_t& scale = scales[(is_key ? 0 : block_size) + slot];
      scale = RoundToInt8({values, row.size()}, row.data());
      for (int64_t d = 0; d < head_dim; ++d) {
        const int8_t stored = row[static_cast<size_t>(d)];
        keys[is_key ? d * block_size + slot : (block_size + slot) * head_dim + d] = stored;
        values[d] = stored * ScaleOf(scale);
      }
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
};

class AttentionKernelTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    kernels_ = FindCpuKernels(GetParam());
    if (kernels_ == nullptr) GTEST_SKIP() << "this processor has no " << GetParam();
  }

  void ExpectMatches(const Setting& setting, double tolerance = 4e-6) {
    for (const KvCacheType type : {KvCacheType::kFloat, KvCacheType::kInt8}) {
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
  for (const int64_t head_dim : {2, 10, 16, 48, 64, 80, 128}) {
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
  Setting setting;
  setting.head_dim = 80;
  setting.num_cached = 245;
  setting.num_tokens = 16;
  const Sequence sequence(setting);
  const std::vector<float> together = sequence.Attend(*kernels_, 0, 16);
  for (int64_t count = 1; count < 16; ++count) {
    for (int64_t first = 0; first + count <= 16; ++first) {
      const std::vector<float> part = sequence.Attend(*kernels_, first, count);
      ASSERT_TRUE(std::equal(part.begin(), part.end(), together.begin() + first * 80))
          << "queries from " << first << ", " << count;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, AttentionKernelTest, ::testing::Values("avx512", "avx2", "portable"));

}  // namespace
}  // namespace ultrasketch
