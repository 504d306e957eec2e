// Memory, sampling and failures of the device.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/backends/cuda/device_test.h"
#include "tests/codecs/fold_examples.h"

namespace ultrasketch {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST_F(CudaTest, DescribesItself) {
  EXPECT_EQ(CudaBackendOrNull()->name(), "cuda:0");
  EXPECT_THAT(CudaBackendOrNull()->description(), HasSubstr("compute capability"));
}

TEST_F(CudaTest, RefusesWhatDoesNotFitWithBytesNeededAndAvailable) {
  const absl::Status status = CudaBackendOrNull()->Allocate(int64_t{1} << 50).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("1125899906842624 bytes needed"), HasSubstr("bytes available")));
  // And goes on.
  EXPECT_TRUE(CudaBackendOrNull()->Allocate(1 << 20).ok());
  EXPECT_TRUE(CudaBackendOrNull()->Allocate(0).ok());
}

TEST_F(CudaTest, GivesEveryByteBack) {
  Backend& backend = *CudaBackendOrNull();
  const auto fold = ExampleFold(3000, 1000, 500);
  const auto available = [&] {
    const std::string message((backend.Allocate(int64_t{1} << 50)).status().message());
    return message.substr(message.find("needed, "));
  };
  ASSERT_TRUE(backend.LoadLinear(*fold, {}).ok());
  const std::string before = available();
  for (int i = 0; i < 100; ++i) {
    ASSERT_TRUE(backend.LoadLinear(*fold, {}).ok());
    ASSERT_TRUE(backend.Allocate(int64_t{256} << 20).ok());
  }
  EXPECT_EQ(available(), before);
}

TEST_F(CudaTest, HoldsLittleMoreThanTheFileDoes) {
  const auto fold = ExampleFold(4096, 4096, 2048);
  const auto linear = CudaBackendOrNull()->LoadLinear(*fold, {});
  ASSERT_TRUE(linear.ok()) << linear.status();
  EXPECT_LT(static_cast<double>((*linear)->resident_bytes()),
            1.02 * static_cast<double>(fold->stored_bytes()));
}

std::shared_ptr<Backend> NewBackend() {
  auto backend = CreateBackend("cuda", {});
  EXPECT_TRUE(backend.ok()) << backend.status();
  return backend.ok() ? *std::move(backend) : nullptr;
}

// Bytes that could be allocated, as a refusal says.
int64_t AvailableBytes(Backend& backend) {
  const std::string message(backend.Allocate(int64_t{1} << 50).status().message());
  return std::stoll(message.substr(message.find("needed, ") + 8));
}

TEST_F(CudaTest, AccountsForItsWorkspace) {
  const int64_t before = AvailableBytes(*CudaBackendOrNull());
  const auto backend = NewBackend();
  ASSERT_NE(backend, nullptr);
  const int64_t taken = before - AvailableBytes(*CudaBackendOrNull());
  EXPECT_GE(backend->workspace_bytes(), int64_t{96} << 20);
  // Besides, a stream, and what the driver rounds up to.
  EXPECT_LE(taken, backend->workspace_bytes() + (int64_t{8} << 20));
}

TEST_F(CudaTest, AStepThatFindsNoMemoryFailsAndTheNextSucceeds) {
  const auto backend = NewBackend();
  ASSERT_NE(backend, nullptr);
  const TestStep step(100000);
  {
    const auto producer = CudaBackendOrNull()->Allocate(AvailableBytes(*backend));
    ASSERT_TRUE(producer.ok()) << producer.status();
    const absl::Status status = backend->BeginStep(step.input());
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("bytes needed"), HasSubstr("bytes available")));
  }
  EXPECT_TRUE(backend->BeginStep(step.input()).ok());
  EXPECT_TRUE(backend->EndStep().ok());
}

// In a process of its own: a context that has read where nothing is does not recover.
TEST_F(CudaTest, ALostDeviceFailsWhatIsAskedOfItAndTheProcessGoesOn) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto lose_the_device = [] {
    Backend& backend = *CudaBackendOrNull();
    const std::vector<float> row(1024, 1.0f);
    const auto table = MakeTable(backend, row, 1024);
    auto hidden = MakeActivations(backend, 1, 1024);
    const TestStep step(1);
    const std::vector<int32_t> far_away = {1 << 30};
    StepInput input = step.input();
    input.token_ids = far_away;
    absl::Status status = backend.BeginStep(input);
    backend.Embed(*table, *hidden);
    if (status.ok()) status = backend.EndStep();
    std::fprintf(stderr, "step: %s\n", status.ToString().c_str());
    std::vector<float> logits(8);
    for (const absl::Status& later :
         {backend.BeginStep(step.input()), backend.Allocate(1 << 20).status(),
          backend.CopyLogits(*hidden, 8, 0, absl::MakeSpan(logits)),
          backend.Sample(*hidden, 8, {}, {})}) {
      std::fprintf(stderr, "later: %s\n", later.ToString().c_str());
      if (later.code() != absl::StatusCode::kUnavailable) std::exit(1);
    }
    std::exit(status.code() == absl::StatusCode::kUnavailable ? 0 : 1);
  };
  EXPECT_EXIT(lose_the_device(), ::testing::ExitedWithCode(0),
              "step: UNAVAILABLE: .*cudaError[A-Z]");
}

// Rows of logits in device memory.
class Logits {
 public:
  Logits(Backend& backend, const std::vector<std::vector<float>>& rows)
      : vocab_size_(static_cast<int64_t>(rows[0].size())) {
    std::vector<float> values;
    for (const std::vector<float>& row : rows) values.insert(values.end(), row.begin(), row.end());
    const auto num_rows = static_cast<int64_t>(rows.size());
    buffer_ = MakeActivations(backend, num_rows, vocab_size_);
    const auto table = MakeTable(backend, values, vocab_size_);
    const TestStep step(num_rows);
    EXPECT_TRUE(backend.BeginStep(step.input()).ok());
    backend.Embed(*table, *buffer_);
    EXPECT_TRUE(backend.EndStep().ok());
  }
  const DeviceBuffer& buffer() const { return *buffer_; }
  int64_t vocab_size() const { return vocab_size_; }

 private:
  int64_t vocab_size_;
  std::unique_ptr<DeviceBuffer> buffer_;
};

TEST_F(CudaTest, SamplesAsTheReferenceDoes) {
  Backend& backend = *CudaBackendOrNull();
  std::vector<std::vector<float>> rows;
  for (uint64_t row = 0; row < 8; ++row) rows.push_back(ShortFloats(5003, 40 + row, 3.0f));
  const Logits logits(backend, rows);
  std::vector<SamplingParams> params(6);
  params[0].temperature = 0;
  params[1].temperature = 0.7f;
  params[2].top_k = 20;
  params[3].top_p = 0.8f;
  params[4].temperature = 1.3f;
  params[4].min_p = 0.05f;
  params[4].num_logprobs = 3;
  params[5].temperature = 0;
  params[5].logit_bias = {{17, 100.0f}};
  std::vector<SampleRequest> requests;
  for (int64_t row = 0; row < 8; ++row) {
    for (SamplingParams& one : params) {
      one.seed = 99;
      SampleRequest request;
      request.logits_row = 7 - row;
      request.params = &one;
      request.index = static_cast<uint64_t>(row);
      requests.push_back(request);
    }
  }
  std::vector<SampledToken> tokens(requests.size());
  ASSERT_TRUE(
      backend.Sample(logits.buffer(), logits.vocab_size(), requests, absl::MakeSpan(tokens)).ok());
  for (size_t i = 0; i < requests.size(); ++i) {
    const auto expected =
        SampleToken(rows[static_cast<size_t>(requests[i].logits_row)], requests[i]);
    ASSERT_TRUE(expected.ok()) << expected.status();
    EXPECT_EQ(tokens[i].id, expected->id) << "request " << i;
    EXPECT_EQ(tokens[i].logprob, expected->logprob);
    EXPECT_EQ(tokens[i].top.size(), expected->top.size());
  }
}

TEST_F(CudaTest, TiesGoToTheLowestToken) {
  Backend& backend = *CudaBackendOrNull();
  std::vector<float> row(3000, -1.0f);
  for (const size_t id : {2999, 1025, 700, 33}) row[id] = 2.5f;
  std::vector<float> zeros(3000, -0.0f);
  zeros[5] = 0.0f;
  const Logits logits(backend, {row, zeros});
  SamplingParams greedy;
  greedy.temperature = 0;
  std::vector<SampleRequest> requests(2);
  requests[0].params = requests[1].params = &greedy;
  requests[1].logits_row = 1;
  std::vector<SampledToken> tokens(2);
  ASSERT_TRUE(backend.Sample(logits.buffer(), 3000, requests, absl::MakeSpan(tokens)).ok());
  EXPECT_EQ(tokens[0].id, 33);
  EXPECT_EQ(tokens[1].id, 0);
}

TEST_F(CudaTest, NamesALogitThatIsNotANumber) {
  Backend& backend = *CudaBackendOrNull();
  std::vector<float> row(300, -1.0f);
  row[123] = std::numeric_limits<float>::quiet_NaN();
  const Logits logits(backend, {std::vector<float>(300, 1.0f), row});
  SamplingParams greedy;
  greedy.temperature = 0;
  std::vector<SampleRequest> requests(2);
  requests[0].params = requests[1].params = &greedy;
  requests[1].logits_row = 1;
  std::vector<SampledToken> tokens(2);
  const absl::Status status =
      backend.Sample(logits.buffer(), 300, requests, absl::MakeSpan(tokens));
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr("entry 123 of 300 is NaN"));
}

}  // namespace
}  // namespace ultrasketch
