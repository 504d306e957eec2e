// Sampling on the device against the reference implementation: the same tokens from the same
// logits.
#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/random.h"
#include "tests/backends/cuda/device_test.h"

namespace ultrasketch {
namespace {

// Rows of logits in device memory.
class Logits {
 public:
  Logits(Backend& backend, std::vector<std::vector<float>> rows) : rows_(std::move(rows)) {
    std::vector<float> values;
    for (const std::vector<float>& row : rows_) {
      values.insert(values.end(), row.begin(), row.end());
    }
    const auto num_rows = static_cast<int64_t>(rows_.size());
    buffer_ = backend.Allocate(static_cast<int64_t>(values.size() * sizeof(float))).value();
    const auto table = MakeTable(backend, values, vocab_size());
    const TestStep step(num_rows);
    EXPECT_TRUE(backend.BeginStep(step.input()).ok());
    backend.Embed(*table, *buffer_);
    EXPECT_TRUE(backend.EndStep().ok());
    // A table scales its rows: what came of small numbers is what the reference is given.
    const std::vector<float> stored = ReadRows(backend, *buffer_, num_rows, vocab_size());
    for (size_t row = 0; row < rows_.size(); ++row) {
      rows_[row].assign(stored.begin() + static_cast<ptrdiff_t>(row * rows_[row].size()),
                        stored.begin() + static_cast<ptrdiff_t>((row + 1) * rows_[row].size()));
    }
  }
  const DeviceBuffer& buffer() const { return *buffer_; }
  int64_t vocab_size() const { return static_cast<int64_t>(rows_[0].size()); }
  const std::vector<float>& row(int64_t index) const { return rows_[static_cast<size_t>(index)]; }
  size_t num_rows() const { return rows_.size(); }

 private:
  std::vector<std::vector<float>> rows_;
  std::unique_ptr<DeviceBuffer> buffer_;
};

void ExpectReferenceTokens(const Logits& logits, absl::Span<const SampleRequest> requests) {
  std::vector<SampledToken> tokens(requests.size());
  const absl::Status status = CudaBackendOrNull()->Sample(logits.buffer(), logits.vocab_size(),
                                                          requests, absl::MakeSpan(tokens));
  ASSERT_TRUE(status.ok()) << status;
  for (size_t i = 0; i < requests.size(); ++i) {
    const auto expected = SampleToken(logits.row(requests[i].logits_row), requests[i]);
    ASSERT_TRUE(expected.ok()) << expected.status();
    EXPECT_EQ(tokens[i].id, expected->id) << "request " << i;
    EXPECT_EQ(tokens[i].logprob, expected->logprob) << "request " << i;
    ASSERT_EQ(tokens[i].top.size(), expected->top.size()) << "request " << i;
    for (size_t j = 0; j < expected->top.size(); ++j) {
      EXPECT_EQ(tokens[i].top[j].id, expected->top[j].id) << "request " << i << ", place " << j;
      EXPECT_EQ(tokens[i].top[j].logprob, expected->top[j].logprob)
          << "request " << i << ", place " << j;
    }
  }
}

// Peaked, flat, with many ties, and with a few possible tokens.
Logits SeveralRows(int64_t vocab_size) {
  const auto size = static_cast<size_t>(vocab_size);
  std::vector<std::vector<float>> rows = {ShortFloats(vocab_size, 40, 3.0f),
                                          ShortFloats(vocab_size, 41, 12.0f),
                                          ShortFloats(vocab_size, 42, 0.125f)};
  std::vector<float> ties(size);
  for (size_t id = 0; id < size; ++id) {
    ties[id] = static_cast<float>(RandomWord(5, 6, id) % 7) - 3.0f;
  }
  rows.push_back(ties);
  rows.push_back(std::vector<float>(size, 0.0f));
  std::vector<float> few(size, -60000.0f);
  few[size / 2] = 1.0f;
  few[size - 1] = 0.5f;
  rows.push_back(few);
  return Logits(*CudaBackendOrNull(), std::move(rows));
}

// Each parameter alone and combinations, as index `draw` of each row.
void CompareAll(const Logits& logits, std::vector<SamplingParams> params, int draws,
                const TokenCounts* counts = nullptr, absl::Span<const int32_t> forbidden_ids = {}) {
  std::vector<SampleRequest> requests;
  for (size_t row = 0; row < logits.num_rows(); ++row) {
    for (SamplingParams& one : params) {
      one.seed = 99;
      for (int draw = 0; draw < draws; ++draw) {
        SampleRequest request;
        request.logits_row = static_cast<int64_t>(row);
        request.params = &one;
        request.counts = counts;
        request.forbidden_ids = forbidden_ids;
        request.stream = row;
        request.index = static_cast<uint64_t>(draw);
        requests.push_back(request);
      }
    }
  }
  ExpectReferenceTokens(logits, requests);
}

class CudaSamplerTest : public CudaTestWithParam<int64_t> {};

TEST_P(CudaSamplerTest, TemperatureTopKTopPAndMinPDrawTheReferencesTokens) {
  const Logits logits = SeveralRows(GetParam());
  std::vector<SamplingParams> params;
  for (const float temperature : {0.0f, 0.3f, 1.0f, 2.5f}) {
    for (const int32_t top_k : {0, 1, 7, 200}) {
      for (const float top_p : {1.0f, 0.9f, 0.3f, 0.0f}) {
        for (const float min_p : {0.0f, 0.08f}) {
          SamplingParams one;
          one.temperature = temperature;
          one.top_k = top_k;
          one.top_p = top_p;
          one.min_p = min_p;
          params.push_back(one);
        }
      }
    }
  }
  CompareAll(logits, params, /*draws=*/3);
}

TEST_P(CudaSamplerTest, LogProbabilitiesAreTheReferences) {
  std::vector<SamplingParams> params(4);
  params[0].num_logprobs = 0;
  params[1].num_logprobs = 5;
  params[2].num_logprobs = 20;
  params[2].temperature = 0;
  params[3].num_logprobs = 1000;
  params[3].top_k = 3;
  CompareAll(SeveralRows(GetParam()), params, /*draws=*/2);
}

TEST_P(CudaSamplerTest, BiasPenaltiesAndForbiddenTokensChangeTheLogitsAsInTheReference) {
  const auto vocab_size = static_cast<int32_t>(GetParam());
  TokenCounts counts;
  for (int32_t id = 0; id < vocab_size; id += 3) counts.prompt[id] = 1 + id % 4;
  for (int32_t id = 0; id < vocab_size; id += 5) counts.output[id] = 1 + id % 3;
  counts.output[vocab_size + 7] = 1;  // not in the vocabulary
  std::vector<SamplingParams> params(10);
  params[0].repetition_penalty = 1.3f;
  params[1].presence_penalty = 0.7f;
  params[2].frequency_penalty = 0.9f;
  params[3].logit_bias = {{0, 3.5f}, {vocab_size - 1, 4.25f}, {vocab_size / 2, -8.0f}};
  params[4].logit_bias = {{vocab_size / 2, -100.0f}};
  params[4].repetition_penalty = 0.8f;
  params[4].frequency_penalty = -0.4f;
  params[4].presence_penalty = 1.1f;
  params[4].top_p = 0.8f;
  params[4].num_logprobs = 4;
  params[5].temperature = 0;
  params[5].presence_penalty = 2.0f;
  params[6].repetition_penalty = 2.5f;
  params[7].repetition_penalty = 1e-38f;
  params[8].repetition_penalty = 3e38f;
  params[9].repetition_penalty = 2.5f;
  params[9].top_p = 0.0f;
  const std::vector<int32_t> forbidden = {vocab_size / 2, 1, 33};
  CompareAll(SeveralRows(vocab_size), params, /*draws=*/3, &counts);
  CompareAll(SeveralRows(vocab_size), params, /*draws=*/3, &counts, forbidden);
  CompareAll(SeveralRows(vocab_size), params, /*draws=*/3, nullptr, forbidden);
}

INSTANTIATE_TEST_SUITE_P(VocabularySizes, CudaSamplerTest, ::testing::Values(37, 512, 1025, 32003));

TEST_F(CudaTest, MoreTokensThanTheDeviceSelectsAreDrawnAllTheSame) {
  std::vector<SamplingParams> params(3);
  params[0].top_k = 1500;
  params[1].num_logprobs = 1100;
  params[2].top_k = 1024;
  CompareAll(SeveralRows(2100), params, /*draws=*/2);
}

TEST_F(CudaTest, NamesWhatPenaltiesLeaveNothingOf) {
  Backend& backend = *CudaBackendOrNull();
  const Logits logits(backend, {std::vector<float>(4, 1.0f)});
  SamplingParams params;
  const std::vector<int32_t> forbidden = {0, 1, 2, 3};
  SampleRequest request;
  request.params = &params;
  request.forbidden_ids = forbidden;
  std::vector<SampledToken> tokens(1);
  const absl::Status status =
      backend.Sample(logits.buffer(), 4, {&request, 1}, absl::MakeSpan(tokens));
  EXPECT_EQ(status, SampleToken(logits.row(0), request).status());
  EXPECT_FALSE(status.ok());
}

}  // namespace
}  // namespace ultrasketch
