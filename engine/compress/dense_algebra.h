// Products and factorizations of large matrices in double precision, by OpenBLAS.
#ifndef ULTRASKETCH_ENGINE_COMPRESS_DENSE_ALGEBRA_H_
#define ULTRASKETCH_ENGINE_COMPRESS_DENSE_ALGEBRA_H_

#include "Eigen/Core"

namespace ultrasketch {

using RowMajorMatrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// All run on the calling thread and may be called from several at once.

// out [m, n] = factor * a [m, k] b [k, n] + keep * out. Row-major with the given row strides.
void MultiplyAdd(int64_t m, int64_t n, int64_t k, double factor, const double* a, int64_t a_stride,
                 const double* b, int64_t b_stride, double keep, double* out, int64_t out_stride);

// Replaces a symmetric matrix, of which the upper triangle is read, by the upper U with
// matrix = U^T U; what is below the diagonal is not defined. False when it is not positive
// definite.
bool Cholesky(RowMajorMatrix& matrix);

// x [m, size] = x (U^T U)^-1 for an upper U of Cholesky.
void SolveCholesky(const RowMajorMatrix& upper, RowMajorMatrix& x);

// Replaces U by the inverse of U^T U: its upper triangle, that is.
bool InvertCholesky(RowMajorMatrix& upper);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_COMPRESS_DENSE_ALGEBRA_H_
