#include "engine/compress/dense_algebra.h"

#include <cblas.h>

#include <cstdint>
#include <cstring>
#include <limits>
#include <mutex>

#include "engine/base/check.h"

extern "C" {
void dpotrf_(const char* triangle, const int* size, double* matrix, const int* stride, int* info);
void dpotri_(const char* triangle, const int* size, double* matrix, const int* stride, int* info);
}

namespace ultrasketch {
namespace {

// Parallelism is the callers': OpenBLAS keeps to the calling thread. A build of it without threads
// is not safe to call from several at once either, so such calls take turns.
class BlasCall {
 public:
  BlasCall() {
    static const bool serial = [] {
      openblas_set_num_threads(1);
      return std::strstr(openblas_get_config(), "SINGLE_THREADED") != nullptr;
    }();
    if (serial) lock_ = std::unique_lock(Turns());
  }

 private:
  static std::mutex& Turns() {
    static std::mutex mutex;
    return mutex;
  }
  std::unique_lock<std::mutex> lock_;
};

int Int(int64_t value) {
  US_CHECK(value >= 0 && value <= std::numeric_limits<int>::max());
  return static_cast<int>(value);
}

}  // namespace

void MultiplyAdd(int64_t m, int64_t n, int64_t k, double factor, const double* a, int64_t a_stride,
                 const double* b, int64_t b_stride, double keep, double* out, int64_t out_stride) {
  if (m == 0 || n == 0) return;
  const BlasCall call;
  cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, Int(m), Int(n), Int(k), factor, a,
              Int(a_stride), b, Int(b_stride), keep, out, Int(out_stride));
}

// LAPACK's matrices are column-major: our upper triangle is its lower one.

bool Cholesky(RowMajorMatrix& matrix) {
  US_CHECK(matrix.rows() == matrix.cols());
  const int size = Int(matrix.rows());
  int info = 0;
  const BlasCall call;
  dpotrf_("L", &size, matrix.data(), &size, &info);
  return info == 0;
}

void SolveCholesky(const RowMajorMatrix& upper, RowMajorMatrix& x) {
  US_CHECK(upper.rows() == x.cols());
  if (x.rows() == 0) return;
  const int rows = Int(x.rows());
  const int size = Int(x.cols());
  const BlasCall call;
  cblas_dtrsm(CblasRowMajor, CblasRight, CblasUpper, CblasNoTrans, CblasNonUnit, rows, size, 1.0,
              upper.data(), size, x.data(), size);
  cblas_dtrsm(CblasRowMajor, CblasRight, CblasUpper, CblasTrans, CblasNonUnit, rows, size, 1.0,
              upper.data(), size, x.data(), size);
}

bool InvertCholesky(RowMajorMatrix& upper) {
  const int size = Int(upper.rows());
  int info = 0;
  const BlasCall call;
  dpotri_("L", &size, upper.data(), &size, &info);
  return info == 0;
}

}  // namespace ultrasketch
