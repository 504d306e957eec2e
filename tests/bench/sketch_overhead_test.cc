#include "engine/bench/sketch_overhead.h"

#include <memory>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/backends/backend.h"
#include "engine/format/checkpoint.h"

namespace ultrasketch {
namespace {

using ::testing::HasSubstr;

class SketchOverheadTest : public ::testing::Test {
 protected:
  SketchOverheadTest() {
    options_.prompt_tokens = 20;
    options_.run = [this](absl::FunctionRef<absl::Status()> step) {
      ++num_steps_;
      return step();
    };
  }

  static std::shared_ptr<const Checkpoint> Open(const std::string& name) {
    auto checkpoint = Checkpoint::Open(std::string(SAMPLE_MODELS_DIR) + "/" + name);
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    return *std::move(checkpoint);
  }

  const std::shared_ptr<Backend> backend_ = *CreateBackend("cpu", {.num_threads = 1});
  SketchOverheadOptions options_;
  int num_steps_ = 0;
};

TEST_F(SketchOverheadTest, ComparesWithUncompressedLayers) {
  const auto checkpoint = Open("classics-20m-sketch");
  const auto overhead = MeasureSketchOverhead(*checkpoint, *backend_, options_);
  ASSERT_TRUE(overhead.ok()) << overhead.status();
  // What they are depends on the machine and on what else it does.
  EXPECT_GT(overhead->prefill, 0.01);
  EXPECT_LT(overhead->prefill, 100);
  EXPECT_GT(overhead->decode, 0.01);
  EXPECT_LT(overhead->decode, 100);
  EXPECT_GE(num_steps_, 2 * 3 * 8);
}

TEST_F(SketchOverheadTest, AFewLayersStandForAll) {
  const auto checkpoint = Open("classics-20m-sketch");
  const int64_t all = SketchOverheadBytes(*checkpoint, *backend_, options_);
  options_.dense_bytes = 1;
  const int64_t one = SketchOverheadBytes(*checkpoint, *backend_, options_);
  EXPECT_NEAR(static_cast<double>(all) / static_cast<double>(one), checkpoint->config().num_layers,
              0.01);
  const auto overhead = MeasureSketchOverhead(*checkpoint, *backend_, options_);
  ASSERT_TRUE(overhead.ok()) << overhead.status();
  EXPECT_GT(overhead->decode, 0.01);
  EXPECT_LT(overhead->decode, 100);
}

TEST_F(SketchOverheadTest, TakesAsMuchMemoryAsItSays) {
  const auto checkpoint = Open("classics-20m-sketch");
  const int64_t before = backend_->used_bytes();
  int64_t most = 0;
  options_.run = [&](absl::FunctionRef<absl::Status()> step) {
    const absl::Status status = step();
    most = std::max(most, backend_->used_bytes());
    return status;
  };
  ASSERT_TRUE(MeasureSketchOverhead(*checkpoint, *backend_, options_).ok());
  const auto said = static_cast<double>(SketchOverheadBytes(*checkpoint, *backend_, options_));
  EXPECT_LT(static_cast<double>(most - before), 1.25 * said + (8 << 20));
  // Nearly all of it is given back.
  EXPECT_LT(static_cast<double>(backend_->used_bytes() - before), 0.5 * said);
}

TEST_F(SketchOverheadTest, KeysAndValuesAreKeptAsTheModelKeepsThem) {
  const auto checkpoint = Open("classics-20m-sketch");
  options_.prompt_tokens = 1000;  // enough for the cache to count
  const int64_t floats = SketchOverheadBytes(*checkpoint, *backend_, options_);
  options_.kv_cache_type = KvCacheType::kInt8;
  const int64_t bytes = SketchOverheadBytes(*checkpoint, *backend_, options_);
  const ModelConfig& config = checkpoint->config();
  const int64_t num_values =
      int64_t{2} * 1000 * config.num_layers * config.num_kv_heads * config.head_dim;
  // A number takes 2 bytes or 1, and int8 keeps a scale for each token and head.
  EXPECT_GT(floats - bytes, num_values * 9 / 10);
  options_.prompt_tokens = 20;
  const auto overhead = MeasureSketchOverhead(*checkpoint, *backend_, options_);
  ASSERT_TRUE(overhead.ok()) << overhead.status();
  EXPECT_GT(overhead->decode, 0.01);
  EXPECT_LT(overhead->decode, 100);
}

TEST_F(SketchOverheadTest, EndsWhenItIsAskedTo) {
  const auto checkpoint = Open("classics-20m-sketch");
  options_.is_cancelled = [this] { return num_steps_ >= 10; };
  EXPECT_EQ(MeasureSketchOverhead(*checkpoint, *backend_, options_).status().code(),
            absl::StatusCode::kCancelled);
  EXPECT_EQ(num_steps_, 10);
  options_.run = [](absl::FunctionRef<absl::Status()>) { return absl::InternalError("no device"); };
  options_.is_cancelled = [] { return false; };
  EXPECT_EQ(MeasureSketchOverhead(*checkpoint, *backend_, options_).status().code(),
            absl::StatusCode::kInternal);
}

TEST_F(SketchOverheadTest, RefusesAModelThatIsNotCompressed) {
  const auto overhead = MeasureSketchOverhead(*Open("classics-6m"), *backend_, options_);
  EXPECT_EQ(overhead.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(overhead.status().message()), HasSubstr("not compressed"));
}

}  // namespace
}  // namespace ultrasketch
