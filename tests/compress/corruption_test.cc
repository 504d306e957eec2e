// A compressed model's file with one byte changed, anywhere: refused, or the same model.
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/file.h"
#include "engine/base/random.h"
#include "engine/compress/compressor.h"
#include "engine/format/checkpoint.h"
#include "tests/base/temporary_folder.h"
#include "tests/models/tiny_model.h"

namespace ultrasketch {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class CorruptionTest : public ::testing::Test {
 protected:
  void SetUp() override {
    MakeTinyModel(TinyConfig(), {DType::kBF16}).Write(dense_.path());
    CompressOptions options;
    options.calibration_windows = 0;
    options.num_threads = 1;
    options.bits_per_weight = 4;
    options.embedding = "int4";
    options.overwrite = true;
    auto dense = Checkpoint::Open(dense_.path());
    ASSERT_TRUE(dense.ok()) << dense.status();
    const auto report = CompressCheckpoint(*dense, folder_.path(), options);
    ASSERT_TRUE(report.ok()) << report.status();
    auto intact = Checkpoint::Open(folder_.path());
    ASSERT_TRUE(intact.ok()) << intact.status();
    intact_ = *std::move(intact);
    bytes_ = *ReadFile(path_);
    std::memcpy(&header_bytes_, bytes_.data(), sizeof(header_bytes_));
  }

  // The checkpoint with byte `position` replaced. The intact one stays mapped: a new file is
  // written and renamed over it.
  absl::StatusOr<std::shared_ptr<const Checkpoint>> OpenWith(size_t position, uint8_t value) {
    std::string changed = bytes_;
    changed[position] = static_cast<char>(value);
    const std::string other = folder_.Write("changed", changed);
    std::filesystem::rename(other, path_);
    return Checkpoint::Open(folder_.path());
  }

  void ExpectRefusedOrEqual(size_t position, uint8_t value) {
    const auto opened = OpenWith(position, value);
    if (!opened.ok()) {
      EXPECT_THAT(std::string(opened.status().message()), HasSubstr(path_));
      ++num_refused_;
      return;
    }
    ASSERT_EQ((*opened)->tensor_names(), intact_->tensor_names());
    for (const std::string& name : intact_->tensor_names()) {
      const TensorView& found = *(*opened)->Find(name);
      const TensorView& expected = *intact_->Find(name);
      ASSERT_EQ(found.dtype, expected.dtype) << name;
      ASSERT_EQ(found.shape, expected.shape) << name;
      ASSERT_EQ(std::memcmp(found.data, expected.data, static_cast<size_t>(expected.num_bytes())),
                0)
          << name << ", byte " << position << " as " << int{value};
    }
  }

  TemporaryFolder dense_;
  TemporaryFolder folder_;
  std::string path_ = folder_.File("model.safetensors");
  std::shared_ptr<const Checkpoint> intact_;
  std::string bytes_;
  uint64_t header_bytes_ = 0;
  int num_refused_ = 0;
};

TEST_F(CorruptionTest, ChangedHeadersAreRefusedOrMeanTheSame) {
  for (size_t i = 0; i < 8 + header_bytes_; ++i) {
    const auto byte = static_cast<uint8_t>(bytes_[i]);
    ExpectRefusedOrEqual(i, byte ^ 1);
    ExpectRefusedOrEqual(i, byte ^ 0x20);
  }
  // All but padding and the values that nothing depends on.
  EXPECT_GT(num_refused_, static_cast<int>(header_bytes_));
}

TEST_F(CorruptionTest, ChangedDataIsRefused) {
  const auto first = 8 + header_bytes_;
  const uint64_t num_data_bytes = bytes_.size() - first;
  for (uint64_t i = 0; i < 2000; ++i) {
    const size_t position = first + RandomWord(1, 0, i) % num_data_bytes;
    const auto flip = static_cast<uint8_t>(1 << RandomWord(1, 1, i) % 8);
    const auto opened = OpenWith(position, static_cast<uint8_t>(bytes_[position]) ^ flip);
    ASSERT_EQ(opened.status().code(), absl::StatusCode::kDataLoss)
        << "byte " << position << " xor " << int{flip};
    EXPECT_THAT(std::string(opened.status().message()),
                AllOf(HasSubstr(path_), HasSubstr("tensor \"model."), HasSubstr("checksum"),
                      HasSubstr("expected"), HasSubstr("found")));
  }
}

TEST_F(CorruptionTest, ARenamedTensorIsRefused) {
  // The same change in both places where the name stands would only be another name.
  const size_t position = bytes_.find("mlp_input.bits\":{");
  ASSERT_NE(position, std::string::npos);
  const auto opened = OpenWith(position, 'n');
  EXPECT_EQ(opened.status().code(), absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace ultrasketch
