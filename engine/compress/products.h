// Matrix products: the heavy arithmetic of a calibration.
#ifndef ULTRASKETCH_ENGINE_COMPRESS_PRODUCTS_H_
#define ULTRASKETCH_ENGINE_COMPRESS_PRODUCTS_H_

#include <cstdint>

#include "engine/base/thread_pool.h"

namespace ultrasketch {

// out[i][j] += sum over t < num_tokens of a[t][i] * b[t][j], with a [num_tokens, a_width], b
// [num_tokens, b_width], out [a_width, b_width], all row-major. Multiplies and adds in float within
// one call and in double between calls: pass at most some thousand tokens. Each element is summed
// in the order of the tokens whatever the number of threads.
void AddOuterProducts(const float* a, int64_t a_width, const float* b, int64_t b_width,
                      int64_t num_tokens, double* out, ThreadPool& pool);

// AddOuterProducts of a with itself, into the upper triangle of `out` [width, width] (and some
// elements below it): half the work. CompleteSymmetric then copies the upper triangle to the lower.
void AddSelfProducts(const float* a, int64_t width, int64_t num_tokens, double* out,
                     ThreadPool& pool);
void CompleteSymmetric(int64_t width, double* matrix);

// out [a_width, b_width] = the sum of outer products of AddOuterProducts, in float, on the calling
// thread.
void OuterProducts(const float* a, int64_t a_width, const float* b, int64_t b_width,
                   int64_t num_tokens, float* out);

// out [num_tokens, rows] = x W^T, with x [num_tokens, cols] and W given transposed, [cols, rows].
void MultiplyTransposed(const float* x, const float* transposed_weights, int64_t num_tokens,
                        int64_t rows, int64_t cols, float* out, ThreadPool& pool);

// out [cols, rows] = in [rows, cols], transposed.
void Transpose(const float* in, int64_t rows, int64_t cols, float* out, ThreadPool& pool);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_COMPRESS_PRODUCTS_H_
