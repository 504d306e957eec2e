#include "engine/base/tensor.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/check.h"

namespace ultrasketch {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class MapSource : public TensorSource {
 public:
  const TensorView* Find(std::string_view name) const override {
    const auto position = tensors.find(std::string(name));
    return position == tensors.end() ? nullptr : &position->second;
  }
  std::string Describe(std::string_view) const override { return "file.safetensors"; }

  std::map<std::string, TensorView> tensors;
};

TensorView ViewOf(const std::vector<float>& values, std::vector<int64_t> shape) {
  return {DType::kF32, std::move(shape), reinterpret_cast<const uint8_t*>(values.data())};
}

TEST(TensorTest, CountsElements) {
  EXPECT_EQ((TensorView{DType::kF32, {}, nullptr}).num_elements(), 1);
  EXPECT_EQ((TensorView{DType::kF16, {3, 4}, nullptr}).num_bytes(), 24);
  EXPECT_EQ((TensorView{DType::kF32, {3, 0, 4}, nullptr}).num_elements(), 0);
  EXPECT_EQ(ShapeString({768, 256}), "[768, 256]");
  EXPECT_EQ(ShapeString({}), "[]");
}

TEST(TensorTest, ConvertsEveryFloatingTypeUnaligned) {
  const auto convert = [](DType dtype, const auto& values) {
    const size_t num_bytes = values.size() * sizeof(values[0]);
    std::vector<uint8_t> bytes(num_bytes + 1);
    std::memcpy(bytes.data() + 1, values.data(), num_bytes);
    const TensorView view{dtype, {static_cast<int64_t>(values.size())}, bytes.data() + 1};
    std::vector<float> tail(2);
    CopyToFloat(view, 1, 2, tail.data());
    const std::vector<float> all = ToFloatVector(view);
    EXPECT_EQ(tail, std::vector<float>(all.begin() + 1, all.end()));
    return all;
  };
  EXPECT_THAT(convert(DType::kF32, std::vector<float>{1, -2.5f, 3}), ElementsAre(1, -2.5f, 3));
  EXPECT_THAT(convert(DType::kF64, std::vector<double>{1, -2.5, 1e-3}),
              ElementsAre(1, -2.5f, 1e-3f));
  EXPECT_THAT(convert(DType::kF16, std::vector<uint16_t>{0x3c00, 0xc100, 0x0001}),
              ElementsAre(1, -2.5f, 0x1p-24f));
  EXPECT_THAT(convert(DType::kBF16, std::vector<uint16_t>{0x3f80, 0xc020, 0x0001}),
              ElementsAre(1, -2.5f, 0x1p-133f));
}

TEST(TensorDeathTest, RefusesToConvertIntegers) {
  const uint8_t byte = 0;
  float out = 0;
  EXPECT_DEATH(CopyToFloat({DType::kU8, {1}, &byte}, 0, 1, &out), "floating-point");
}

TEST(GetTensorTest, ChecksDtypeAndShape) {
  const std::vector<float> values(6);
  MapSource source;
  source.tensors["w"] = ViewOf(values, {2, 3});
  source.tensors["i"] = {DType::kI32, {2, 3}, nullptr};
  EXPECT_TRUE(GetTensor(source, "w", {}, {2, 3}).ok());
  EXPECT_TRUE(GetTensor(source, "w", {DType::kBF16, DType::kF32}, {-1, 3}).ok());
  EXPECT_EQ(GetTensor(source, "w", {}, {-1, -1})->data,
            reinterpret_cast<const uint8_t*>(values.data()));

  const auto expect_error = [&](absl::StatusCode code, std::string_view name,
                                absl::Span<const DType> dtypes, absl::Span<const int64_t> shape,
                                const std::string& expected, const std::string& found) {
    const absl::Status status = GetTensor(source, name, dtypes, shape).status();
    EXPECT_EQ(status.code(), code);
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("file.safetensors: tensor"), HasSubstr(std::string(name)),
                      HasSubstr(expected), HasSubstr(found)));
  };
  const auto data_loss = absl::StatusCode::kDataLoss;
  expect_error(absl::StatusCode::kNotFound, "absent", {}, {1}, "missing", "absent");
  expect_error(data_loss, "w", {DType::kF16, DType::kBF16}, {2, 3}, "F16 or BF16", "found F32");
  expect_error(data_loss, "i", {}, {2, 3}, "F32, F16, BF16 or F64", "found I32");
  expect_error(data_loss, "w", {}, {3, 2}, "[3, 2]", "found [2, 3]");
  expect_error(data_loss, "w", {}, {6}, "[6]", "found [2, 3]");
  expect_error(data_loss, "w", {}, {2, 3, 1}, "[2, 3, 1]", "found [2, 3]");
}

TEST(CheckFiniteTest, FindsTheFirstBadElement) {
  const MapSource source;
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::quiet_NaN(),
        std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}) {
    for (const size_t at : {0u, 1u, 4095u, 4096u, 9999u}) {
      std::vector<float> values(10000, 3e38f);
      values[at] = bad;
      values[9999] = bad;
      const absl::Status status = CheckFinite(source, "w", ViewOf(values, {100, 100}));
      EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
      EXPECT_THAT(std::string(status.message()),
                  AllOf(HasSubstr("\"w\""), HasSubstr("element " + std::to_string(at) + " is"),
                        HasSubstr(std::isnan(bad) ? "NaN" : "infinite")));
    }
  }
  const std::vector<float> good(10000, -3e38f);
  EXPECT_TRUE(CheckFinite(source, "w", ViewOf(good, {10000})).ok());
  EXPECT_TRUE(CheckFinite(source, "w", ViewOf({}, {0})).ok());
}

// Every pattern of 16 bits, at an odd address, in whole chunks and in what is left of one.
TEST(CheckFiniteTest, TellsEveryPatternOf16Bits) {
  const MapSource source;
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    std::vector<uint8_t> bytes(2 * 4100 + 1);
    for (uint32_t pattern = 0; pattern < 65536; ++pattern) {
      const auto bits = static_cast<uint16_t>(pattern);
      const size_t at = pattern % 4100;
      std::memcpy(bytes.data() + 1 + 2 * at, &bits, 2);
      const float value = dtype == DType::kF16 ? HalfToFloat(bits) : Bf16ToFloat(bits);
      const absl::Status status = CheckFinite(source, "w", {dtype, {4100}, bytes.data() + 1});
      ASSERT_EQ(status.ok(), std::isfinite(value)) << DTypeName(dtype) << " " << pattern;
      if (!status.ok()) {
        ASSERT_THAT(std::string(status.message()),
                    HasSubstr("element " + std::to_string(at) + " is " +
                              (std::isnan(value) ? "NaN" : "infinite")));
      }
      bytes[1 + 2 * at] = bytes[2 + 2 * at] = 0;
    }
  }
}

TEST(CheckFiniteTest, TakesDoublesThatFitAFloat) {
  const MapSource source;
  const auto check = [&](double value) {
    std::vector<double> values(5000, 1.0);
    values[4999] = value;
    return CheckFinite(source, "w",
                       {DType::kF64, {5000}, reinterpret_cast<const uint8_t*>(values.data())});
  };
  EXPECT_TRUE(check(-3e38).ok());
  EXPECT_TRUE(check(1e-300).ok());
  EXPECT_EQ(check(1e39).code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(check(std::nan("")).message()), HasSubstr("element 4999 is NaN"));
}

TEST(CheckDeathTest, NamesTheCondition) {
  EXPECT_DEATH(US_CHECK(1 + 1 == 3), "tensor_test.cc:.*check failed: 1 \\+ 1 == 3");
  US_CHECK(true);
}

}  // namespace
}  // namespace ultrasketch
