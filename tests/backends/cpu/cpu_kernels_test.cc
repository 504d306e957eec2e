// Norm, activation and sum of every instruction set against double precision.
#include "engine/backends/cpu/cpu_kernels.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/instruction_set.h"
#include "engine/base/random.h"
#include "tests/base/guarded_buffer.h"

namespace ultrasketch {
namespace {

constexpr int64_t kSizes[] = {1, 2, 15, 16, 17, 31, 32, 48, 100, 4096, 4099};

std::vector<float> Normals(int64_t count, uint64_t stream, double deviation = 1) {
  std::vector<float> values;
  for (int64_t i = 0; i < count; ++i) {
    values.push_back(
        static_cast<float>(deviation * NormalDouble(23, stream, static_cast<uint64_t>(i))));
  }
  return values;
}

class CpuKernelsTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    kernels_ = FindCpuKernels(GetParam());
    if (kernels_ == nullptr) GTEST_SKIP() << "this processor has no " << GetParam();
    EXPECT_STREQ(kernels_->name, GetParam());
  }

  const CpuKernels* kernels_ = nullptr;
};

TEST_P(CpuKernelsTest, RmsNormDividesByTheRootMeanSquare) {
  for (const int64_t size : kSizes) {
    for (const double deviation : {1e-6, 1e-2, 1.0, 1e6}) {
      for (const float epsilon : {1e-6f, 1e-5f, 0.5f}) {
        const GuardedBuffer<float> x(Normals(size, 1, deviation));
        const GuardedBuffer<float> weight(Normals(size, 2));
        GuardedBuffer<float> output(size);
        kernels_->rms_norm(x.data(), weight.data(), size, epsilon, output.data());
        double squares = 0;
        for (int64_t i = 0; i < size; ++i) squares += double{x.data()[i]} * double{x.data()[i]};
        const double scale = 1 / std::sqrt(squares / static_cast<double>(size) + double{epsilon});
        for (int64_t i = 0; i < size; ++i) {
          const double expected = double{x.data()[i]} * scale * double{weight.data()[i]};
          ASSERT_NEAR(output[i], expected, 4e-6 * std::fabs(expected) + 1e-30)
              << size << " numbers of deviation " << deviation;
        }
      }
    }
  }
}

TEST_P(CpuKernelsTest, RmsNormOfZerosIsZero) {
  const std::vector<float> zeros(33, 0.0f);
  const std::vector<float> weight(33, 2.0f);
  std::vector<float> output(33, 1.0f);
  kernels_->rms_norm(zeros.data(), weight.data(), 33, 1e-6f, output.data());
  EXPECT_EQ(output, zeros);
}

double SwiGluReference(float gate, float up) {
  return double{gate} / (1 + std::exp(-double{gate})) * double{up};
}

TEST_P(CpuKernelsTest, SwiGluMatches) {
  for (const int64_t size : kSizes) {
    const GuardedBuffer<float> gate(Normals(size, 3, 3));
    const GuardedBuffer<float> up(Normals(size, 4));
    GuardedBuffer<float> output(size);
    kernels_->swiglu(gate.data(), up.data(), size, output.data());
    for (int64_t i = 0; i < size; ++i) {
      const double expected = SwiGluReference(gate.data()[i], up.data()[i]);
      ASSERT_NEAR(output[i], expected, 2e-6 * std::fabs(expected) + 1e-30) << gate.data()[i];
    }
  }
}

TEST_P(CpuKernelsTest, SwiGluMatchesOverTheRangeOfItsExponential) {
  std::vector<float> gate;
  for (float value = -120; value <= 120; value += 0.037f) gate.push_back(value);
  for (const float value : {-87.0f, -86.99999f, -88.0f, 87.0f, 88.0f, 88.00001f, 0.0f, -0.0f}) {
    gate.push_back(value);
  }
  const std::vector<float> up(gate.size(), 1.5f);
  std::vector<float> output(gate.size());
  kernels_->swiglu(gate.data(), up.data(), static_cast<int64_t>(gate.size()), output.data());
  for (size_t i = 0; i < gate.size(); ++i) {
    const double expected = SwiGluReference(gate[i], up[i]);
    ASSERT_NEAR(output[i], expected, 2e-6 * std::fabs(expected) + 1e-34) << gate[i];
  }
}

TEST_P(CpuKernelsTest, SwiGluOfExtremeGatesIsFinite) {
  const float largest = std::numeric_limits<float>::max();
  const float smallest = std::numeric_limits<float>::denorm_min();
  const std::vector<float> gate = {100,     -100,     1e4f,     -1e4f,     1e30f, -1e30f,
                                   largest, -largest, smallest, -smallest, 0.0f};
  for (const int repeats : {1, 2, 3}) {  // in whole vectors and in what is left of one
    std::vector<float> gates;
    for (int i = 0; i < repeats; ++i) gates.insert(gates.end(), gate.begin(), gate.end());
    const std::vector<float> up(gates.size(), 1.0f);
    std::vector<float> output(gates.size());
    kernels_->swiglu(gates.data(), up.data(), static_cast<int64_t>(gates.size()), output.data());
    for (size_t i = 0; i < gates.size(); ++i) {
      const float magnitude = std::fabs(gates[i]);
      if (magnitude < 1) {
        ASSERT_NEAR(output[i], 0.0f, 1e-30f);
      } else {
        // e^88 stands for larger powers.
        ASSERT_NEAR(output[i], std::max(gates[i], 0.0f),
                    gates[i] > 0 ? magnitude * 1e-6f : magnitude * 1e-38f)
            << gates[i];
      }
    }
  }
}

TEST_P(CpuKernelsTest, AddAdds) {
  for (const int64_t size : kSizes) {
    const GuardedBuffer<float> y(Normals(size, 5));
    const std::vector<float> before = Normals(size, 6);
    GuardedBuffer<float> x(before);
    kernels_->add(y.data(), size, x.data());
    for (int64_t i = 0; i < size; ++i) {
      ASSERT_EQ(x[i], before[static_cast<size_t>(i)] + y.data()[i]);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, CpuKernelsTest, ::testing::Values("avx512", "avx2", "portable"));

TEST(CpuKernelsChoiceTest, AreThoseOfTheInstructionSet) {
  EXPECT_EQ(&GetCpuKernels(), FindCpuKernels(InstructionSet()));
  EXPECT_STREQ(GetCpuKernels().name, InstructionSet());
  EXPECT_EQ(FindCpuKernels("sse9"), nullptr);
}

}  // namespace
}  // namespace ultrasketch
