#include "engine/compress/dense_algebra.h"

#include <thread>
#include <vector>

#include "gtest/gtest.h"

#include "engine/base/random.h"

namespace ultrasketch {
namespace {

RowMajorMatrix Random(int64_t rows, int64_t cols, uint64_t stream) {
  RowMajorMatrix matrix(rows, cols);
  for (int64_t i = 0; i < rows * cols; ++i) {
    matrix.data()[i] = NormalDouble(29, stream, static_cast<uint64_t>(i));
  }
  return matrix;
}

RowMajorMatrix Product(const RowMajorMatrix& a, const RowMajorMatrix& b) {
  RowMajorMatrix out(a.rows(), b.cols());
  MultiplyAdd(a.rows(), b.cols(), a.cols(), 1.0, a.data(), a.cols(), b.data(), b.cols(), 0.0,
              out.data(), b.cols());
  return out;
}

TEST(DenseAlgebraTest, InverseTimesMatrixIsTheIdentity) {
  for (const int64_t size : {1, 2, 17, 65, 200}) {
    const RowMajorMatrix x = Random(2 * size, size, 1);
    const RowMajorMatrix matrix = x.transpose() * x;
    RowMajorMatrix inverse = matrix;
    ASSERT_TRUE(Cholesky(inverse));
    ASSERT_TRUE(InvertCholesky(inverse));
    const RowMajorMatrix full = inverse.selfadjointView<Eigen::Upper>();
    EXPECT_LT((full * matrix - RowMajorMatrix::Identity(size, size)).cwiseAbs().maxCoeff(), 1e-8);
  }
}

TEST(DenseAlgebraTest, SolvesForManyRows) {
  const RowMajorMatrix a = Random(90, 40, 2);
  const RowMajorMatrix matrix = a.transpose() * a;
  const RowMajorMatrix expected = Random(70, 40, 3);
  RowMajorMatrix factor = matrix;
  ASSERT_TRUE(Cholesky(factor));
  RowMajorMatrix x = expected * matrix;
  SolveCholesky(factor, x);
  EXPECT_LT((x - expected).cwiseAbs().maxCoeff(), 1e-8);
}

TEST(DenseAlgebraTest, RefusesWhatIsNotPositiveDefinite) {
  RowMajorMatrix matrix = RowMajorMatrix::Identity(5, 5);
  matrix(3, 3) = -1;
  EXPECT_FALSE(Cholesky(matrix));
}

// The library below is to be safe for this, in the build of it that is found.
TEST(DenseAlgebraTest, GivesTheSameFromManyThreadsAtOnce) {
  const RowMajorMatrix a = Random(64, 300, 4);
  const RowMajorMatrix b = Random(300, 300, 5);
  const RowMajorMatrix expected = Product(a, b);
  const RowMajorMatrix matrix = b.transpose() * b;
  RowMajorMatrix expected_factor = matrix;
  ASSERT_TRUE(Cholesky(expected_factor));
  RowMajorMatrix expected_solution = a;
  SolveCholesky(expected_factor, expected_solution);
  RowMajorMatrix expected_inverse = expected_factor;
  ASSERT_TRUE(InvertCholesky(expected_inverse));
  std::vector<int> wrong(8, 0);
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 8; ++thread) {
    threads.emplace_back([&, thread] {
      for (int round = 0; round < 40; ++round) {
        if (Product(a, b) != expected) ++wrong[static_cast<size_t>(thread)];
        RowMajorMatrix factor = matrix;
        if (!Cholesky(factor) || factor != expected_factor) ++wrong[static_cast<size_t>(thread)];
        RowMajorMatrix solved = a;
        SolveCholesky(factor, solved);
        if (solved != expected_solution) ++wrong[static_cast<size_t>(thread)];
        if (!InvertCholesky(factor) || factor != expected_inverse) {
          ++wrong[static_cast<size_t>(thread)];
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(8, 0));
}

}  // namespace
}  // namespace ultrasketch
