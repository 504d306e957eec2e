#include "engine/compress/dense_algebra.h"

#include <cblas.h>

#include <cstdint>
#include <limits>

#include "engine/base/check.h"

extern "C" {
void dpotrf_(const char* triangle, const int* size, double* matrix, const int* stride, int* info);
void dpotri_(const char* triangle, const int* size, double* matrix, const int* stride, int* info);
}

namespace ultrasketch {
namespace {

// Parallelism is the callers': OpenBLAS keeps to the calling thread. Its number of threads is one
// of OpenMP's settings, which each thread has for itself.
void UseCallingThread() {
  thread_local const bool once = [] {
    openblas_set_num_threads(1);
    return true;
  }();
  static_cast<void>(once);
}

int Int(int64_t value) {
  US_CHECK(value >= 0 && value <= std::numeric_limits<int>::max());
  return static_cast<int>(value);
}

}  // namespace

void MultiplyAdd(int64_t m, int64_t n, int64_t k, double factor, const double* a, int64_t a_stride,
                 const double* b, int64_t b_stride, double keep, double* out, int64_t out_stride) {
  if (m == 0 || n == 0) return;
  UseCallingThread();
  cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, Int(m), Int(n), Int(k), factor, a,
              Int(a_stride), b, Int(b_stride), keep, out, Int(out_stride));
}

// LAPACK's matrices are column-major: our upper triangle is its lower one.

bool Cholesky(RowMajorMatrix& matrix) {
  US_CHECK(matrix.rows() == matrix.cols());
  UseCallingThread();
  const int size = Int(matrix.rows());
  int info = 0;
  dpotrf_("L", &size, matrix.data(), &size, &info);
  return info == 0;
}

void SolveCholesky(const RowMajorMatrix& upper, RowMajorMatrix& x) {
  US_CHECK(upper.rows() == x.cols());
  if (x.rows() == 0) return;
  UseCallingThread();
  const int rows = Int(x.rows());
  const int size = Int(x.cols());
  cblas_dtrsm(CblasRowMajor, CblasRight, CblasUpper, CblasNoTrans, CblasNonUnit, rows, size, 1.0,
              upper.data(), size, x.data(), size);
  cblas_dtrsm(CblasRowMajor, CblasRight, CblasUpper, CblasTrans, CblasNonUnit, rows, size, 1.0,
              upper.data(), size, x.data(), size);
}

bool InvertCholesky(RowMajorMatrix& upper) {
  UseCallingThread();
  const int size = Int(upper.rows());
  int info = 0;
  dpotri_("L", &size, upper.data(), &size, &info);
  return info == 0;
}

}  // namespace ultrasketch
