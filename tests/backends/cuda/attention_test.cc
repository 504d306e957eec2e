// Rotary embedding, cache and attention on the device against the CPU.
#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

#include "engine/base/random.h"
#include "engine/kv/cache_layout.h"
#include "tests/backends/cuda/device_test.h"

namespace ultrasketch {
namespace {

constexpr double kTolerance = 4e-3;
constexpr int64_t kRows = 96;  // of the site that reads what attention produces

struct Example {
  std::string name;
  AttentionShape shape;
  int block_size;
  std::vector<TestStep::Sequence> sequences;
  bool has_rope = true;
  bool has_head_norms = false;
};

// Sequences of `least` tokens and more, for a new one each.
std::vector<TestStep::Sequence> ManyDecodes(int count, int least) {
  std::vector<TestStep::Sequence> sequences;
  for (int i = 0; i < count; ++i) sequences.push_back({least + 2 * i, 1});
  return sequences;
}

// Decoding sequences of up to 8,193 tokens, some of them beside a few more tokens, with heads and
// blocks of all sizes.
Example RandomExample(int index) {
  uint64_t drawn = 0;
  const auto draw = [&](uint64_t count) {
    return static_cast<int>(RandomWord(11, static_cast<uint64_t>(index), drawn++) % count);
  };
  constexpr int kHeadDims[] = {64, 128, 64, 128, 32, 96, 80, 40, 10, 2, 160, 256};
  Example example;
  example.name = absl::StrCat("random_", index);
  example.shape.head_dim = kHeadDims[index % 12];
  example.shape.num_kv_heads = 1 + draw(3);
  example.shape.num_heads = example.shape.num_kv_heads * (1 + draw(index % 3 == 0 ? 16 : 8));
  example.block_size = 16 * (1 + draw(4));
  const int num_sequences = 1 + draw(3);
  for (int i = 0; i < num_sequences; ++i) {
    const int64_t num_cached = draw(uint64_t{1} << (1 + draw(13))) + draw(2);
    example.sequences.push_back({num_cached, index % 4 == 3 ? 1 + draw(40) : 1});
  }
  return example;
}

std::vector<Example> Examples() {
  std::vector<Example> examples = {
      {"one_token", {4, 2, 64}, 16, {{0, 1}}},
      {"short_prompt", {4, 2, 64}, 16, {{0, 5}}},
      {"long_prompt", {8, 2, 64}, 16, {{0, 700}}},
      {"decode", {4, 2, 64}, 16, {{1, 1}, {15, 1}, {16, 1}, {63, 1}, {64, 1}, {255, 1}, {256, 1}}},
      {"decode_over_many_splits", {8, 2, 128}, 32, {{1000, 1}, {257, 1}, {2049, 1}}},
      {"many_decodes_of_128", {8, 2, 128}, 16, ManyDecodes(80, 100)},
      {"many_decodes_of_64", {16, 8, 64}, 16, ManyDecodes(80, 100)},
      {"decode_groups_of_twelve", {12, 1, 128}, 16, {{70, 1}, {300, 1}, {600, 1}}},
      {"many_decodes_of_groups_of_twelve", {24, 2, 128}, 16, ManyDecodes(70, 100)},
      {"decode_groups_of_sixteen", {32, 2, 64}, 16, {{1, 1}, {255, 1}, {700, 1}}},
      {"decode_small_heads", {4, 2, 32}, 32, {{1, 1}, {300, 1}, {511, 2}, {512, 1}}},
      {"decode_padded_heads", {4, 2, 40}, 16, {{3, 1}, {300, 1}, {511, 2}, {1000, 1}}},
      {"long_prompts_of_128", {8, 2, 128}, 16, {{0, 300}, {250, 70}, {1000, 20}}},
      {"long_prompts_of_24", {4, 4, 24}, 48, {{0, 150}, {250, 70}}},
      {"mixed", {8, 4, 64}, 16, {{300, 1}, {0, 40}, {511, 1}, {100, 33}, {513, 3}}},
      {"every_head_has_its_keys", {3, 3, 64}, 16, {{70, 2}, {0, 20}}},
      {"one_key_head_of_many", {24, 1, 32}, 16, {{70, 2}, {0, 20}, {600, 1}}},
      {"groups_of_seven", {14, 2, 64}, 16, {{70, 2}, {0, 20}, {600, 1}}},
      {"heads_of_10", {4, 2, 10}, 16, {{70, 2}, {0, 20}, {600, 1}}},
      {"heads_of_2", {2, 1, 2}, 16, {{70, 2}, {0, 20}}},
      {"heads_of_80", {4, 4, 80}, 48, {{70, 2}, {0, 20}, {600, 1}}},
      {"heads_of_96", {6, 2, 96}, 16, {{70, 2}, {0, 20}, {600, 1}}},
      {"heads_of_256", {4, 2, 256}, 64, {{70, 2}, {0, 20}, {600, 1}}},
      {"heads_of_254", {2, 1, 254}, 16, {{70, 2}, {0, 20}, {300, 1}}},
      // More KV splits than are merged by attention, and more blocks than find room.
      {"many_long_decodes_of_64", {16, 8, 64}, 16, ManyDecodes(40, 700)},
      {"many_long_decodes_of_128", {8, 8, 128}, 32, ManyDecodes(40, 700)},
      {"many_long_decodes_of_40", {24, 8, 40}, 16, ManyDecodes(40, 700)},
      {"many_long_decodes_of_groups_of_twelve", {36, 3, 64}, 16, ManyDecodes(50, 600)},
      {"decode_8193", {8, 2, 64}, 16, {{8192, 1}, {0, 1}, {5000, 1}}},
  };
  // As Qwen3 and SmolLM3 have them: of one token each, of prompts, of heads of all kinds of
  // kernels.
  for (const int head_dim : {64, 128, 40, 160}) {
    for (const bool has_rope : {true, false}) {
      Example example = {absl::StrCat(has_rope ? "head_norms_of_" : "no_rope_of_", head_dim),
                         {8, 2, head_dim},
                         16,
                         {{1, 1}, {255, 1}, {700, 1}},
                         has_rope,
                         has_rope};
      examples.push_back(example);
      example.name += "_with_a_prompt";
      example.sequences.push_back({100, 90});
      examples.push_back(example);
    }
  }
  for (int i = 0; i < 24; ++i) examples.push_back(RandomExample(i));
  return examples;
}

// Runs attention over a cache that earlier steps have filled, and multiplies what comes out.
// Tokens' queries, keys and values are those of `qkv` by their place in the concatenated sequences,
// so that a result does not depend on how tokens are spread over steps.
class AttentionRun {
 public:
  AttentionRun(Backend& backend, const Example& example, KvCacheType type,
               const EncodedLinear& site)
      : backend_(backend), example_(example), step_(example.sequences, example.block_size) {
    auto linear = backend.LoadLinear(site, {});
    EXPECT_TRUE(linear.ok()) << linear.status();
    linear_ = *std::move(linear);
    std::vector<float> frequencies;
    for (int i = 0; i < example.shape.head_dim / 2; ++i) {
      frequencies.push_back(std::pow(
          10000.0f, -2.0f * static_cast<float>(i) / static_cast<float>(example.shape.head_dim)));
    }
    frequencies_ = MakeVector(backend, frequencies);
    query_norm_ = MakeVector(backend, ShortFloats(example.shape.head_dim, 21));
    key_norm_ = MakeVector(backend, ShortFloats(example.shape.head_dim, 22));
    layout_.num_layers = 2;
    layout_.num_kv_heads = example.shape.num_kv_heads;
    layout_.head_dim = example.shape.head_dim;
    layout_.block_size = example.block_size;
    layout_.num_blocks = step_.num_blocks();
    layout_.type = type;
    layout_.token_bytes = backend.cache_token_bytes(type, layout_.head_dim);
    EXPECT_GT(layout_.token_bytes, 0);
    auto cache = backend.Allocate(layout_.total_bytes());
    EXPECT_TRUE(cache.ok()) << cache.status();
    cache_ = *std::move(cache);
  }

  // One step; attention's results [num_tokens, kRows].
  std::vector<float> Step(const std::vector<TestStep::Sequence>& sequences) {
    step_.Set(sequences);
    const int64_t width = example_.shape.qkv_width();
    std::vector<float> rows;
    for (size_t i = 0; i < sequences.size(); ++i) {
      for (int64_t token = 0; token < sequences[i].num_tokens; ++token) {
        const std::vector<float> row = ShortFloats(
            width, 1000 + 10000 * i + static_cast<uint64_t>(sequences[i].num_cached + token), 1.5f);
        rows.insert(rows.end(), row.begin(), row.end());
      }
    }
    const int64_t num_tokens = step_.num_tokens();
    const auto table = MakeTable(backend_, rows, width);
    auto qkv = MakeActivations(backend_, num_tokens, width);
    auto output = MakeActivations(backend_, num_tokens, kRows);
    EXPECT_TRUE(backend_.ReserveStep(num_tokens).ok());
    constexpr int kLayer = 1;
    EXPECT_TRUE(backend_.BeginStep(step_.input()).ok());
    backend_.Embed(*table, *qkv);
    Attended input = {.shape = example_.shape,
                      .qkv = qkv.get(),
                      .head_norms = std::nullopt,
                      .inverse_frequencies = example_.has_rope ? frequencies_.get() : nullptr,
                      .layout = &layout_,
                      .layer = kLayer,
                      .cache = cache_.get()};
    if (example_.has_head_norms) {
      input.head_norms = {query_norm_.get(), key_norm_.get(), 1e-5f};
    }
    backend_.Apply(input, *linear_, {output.get()});
    const absl::Status status = backend_.EndStep();
    EXPECT_TRUE(status.ok()) << status;
    return ReadRows(backend_, *output, num_tokens, kRows);
  }

  // Puts the cached tokens of all sequences into the cache.
  void FillCache() {
    std::vector<TestStep::Sequence> cached;
    bool any = false;
    for (const TestStep::Sequence& sequence : example_.sequences) {
      cached.push_back({0, sequence.num_cached});
      any = any || sequence.num_cached > 0;
    }
    if (any) Step(cached);
  }

 private:
  Backend& backend_;
  const Example& example_;
  TestStep step_;
  std::unique_ptr<DeviceLinear> linear_;
  std::unique_ptr<DeviceVector> frequencies_;
  std::unique_ptr<DeviceVector> query_norm_;
  std::unique_ptr<DeviceVector> key_norm_;
  KvCacheLayout layout_;
  std::unique_ptr<DeviceBuffer> cache_;
};

class AttentionTest : public CudaTestWithParam<std::tuple<Example, KvCacheType>> {};

TEST_P(AttentionTest, AgreesWithTheCpu) {
  const auto& [example, type] = GetParam();
  const DenseExample site(kRows, example.shape.query_width(), 4);
  std::vector<std::vector<float>> outputs;
  for (Backend* backend : {CpuBackend().get(), CudaBackendOrNull().get()}) {
    AttentionRun run(*backend, example, type, *site.linear);
    run.FillCache();
    outputs.push_back(run.Step(example.sequences));
  }
  // Token by token: an error in one does not hide among the others.
  for (size_t token = 0; token < outputs[0].size() / kRows; ++token) {
    const auto found = absl::MakeConstSpan(outputs[1]).subspan(token * kRows, kRows);
    const auto expected = absl::MakeConstSpan(outputs[0]).subspan(token * kRows, kRows);
    ASSERT_LT(RelativeError(found, expected), kTolerance) << "token " << token;
  }
}

// Every sequence on its own, one new token a step or all at once: the same bits.
TEST_P(AttentionTest, DoesNotDependOnTheBatchOrOnTheSteps) {
  const auto& [example, type] = GetParam();
  const DenseExample site(kRows, example.shape.query_width(), 4);
  Backend& backend = *CudaBackendOrNull();
  AttentionRun run(backend, example, type, *site.linear);
  run.FillCache();
  const std::vector<float> together = run.Step(example.sequences);
  size_t first_token = 0;
  for (size_t i = 0; i < example.sequences.size(); ++i) {
    const TestStep::Sequence sequence = example.sequences[i];
    for (int64_t token = 0; token < sequence.num_tokens; ++token) {
      // All tokens of short spans, some of long ones.
      if (sequence.num_tokens > 50 && token % 97 != 3 && token + 1 != sequence.num_tokens) continue;
      std::vector<TestStep::Sequence> alone(example.sequences.size());
      alone[i] = {sequence.num_cached + token, 1};
      const std::vector<float> found = run.Step(alone);
      for (size_t row = 0; row < static_cast<size_t>(kRows); ++row) {
        ASSERT_EQ(found[row], together[(first_token + static_cast<size_t>(token)) * kRows + row])
            << "sequence " << i << ", token " << token << ", row " << row;
      }
    }
    first_token += static_cast<size_t>(sequence.num_tokens);
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, AttentionTest,
                         ::testing::Combine(::testing::ValuesIn(Examples()),
                                            ::testing::Values(KvCacheType::kFp16,
                                                              KvCacheType::kInt8)),
                         [](const auto& test) {
                           return std::get<0>(test.param).name +
                                  (std::get<1>(test.param) == KvCacheType::kInt8 ? "_int8" : "");
                         });

}  // namespace
}  // namespace ultrasketch
