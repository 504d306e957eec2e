// The kernels of a fit, launched on a stream: cudaGetLastError tells whether. All pointers are to
// device memory, all matrices row-major. Nothing is summed by atomic additions: the same input
// gives the same bits.
#ifndef ULTRASKETCH_ENGINE_COMPRESS_CUDA_FIT_KERNELS_H_
#define ULTRASKETCH_ENGINE_COMPRESS_CUDA_FIT_KERNELS_H_

#include <cuda_runtime_api.h>

#include <cstdint>

namespace ultrasketch::cuda {

// --- matrix_product.cu ---

// y [num_tokens, rows] = x [num_tokens, cols] W^T + bias, W [rows, cols]; `bias` may be null.
void LaunchForward(const float* x, const float* weights, const float* bias, int64_t num_tokens,
                   int64_t rows, int64_t cols, float* y, cudaStream_t stream);

// Tokens whose outer products are summed in float before they are added in double.
inline constexpr int64_t kSliceTokens = 1024;

// out [a_width, b_width] += sum over tokens of a[t]^T b[t]. With `upper` only elements on and above
// the diagonal are sure to be computed. `workspace` of `workspace_bytes` may be used.
void LaunchOuterProducts(const float* a, int64_t a_width, const float* b, int64_t b_width,
                         int64_t num_tokens, bool upper, double* out, void* workspace,
                         int64_t workspace_bytes, cudaStream_t stream);

// out [m, n] = factor * a [m, k] b [k, n] + keep * out; strides are those of rows.
template <typename A>
void LaunchProduct(int64_t m, int64_t n, int64_t k, double factor, const A* a, int64_t a_stride,
                   const double* b, int64_t b_stride, double keep, double* out, int64_t out_stride,
                   cudaStream_t stream);

// The same for an upper triangular b, zero below its diagonal, or the transpose of one.
void LaunchProductUpper(int64_t m, int64_t n, const double* a, int64_t a_stride, const double* b,
                        int64_t b_stride, bool transposed, double* out, int64_t out_stride,
                        cudaStream_t stream);

// out [m, n] = factor * a^T b + keep * out, a [k, m], b [k, n]; with `upper` the upper triangle at
// least. `out` may be b where m and k are at most 64.
void LaunchTransposedProduct(int64_t m, int64_t n, int64_t k, double factor, const double* a,
                             int64_t a_stride, const double* b, int64_t b_stride, bool upper,
                             double keep, double* out, int64_t out_stride, cudaStream_t stream);

// --- factor.cu ---

inline constexpr int64_t kFactorBlock = 64;

// Bytes of scratch of LaunchInverseFactor for a matrix of that size.
int64_t InverseFactorScratchBytes(int64_t size);

// The upper R with (matrix + damping I)^-1 = R^T R, zero below the diagonal, of a symmetric matrix.
// Sets *failed, which was 0, when it is not positive definite.
void LaunchInverseFactor(const double* matrix, int64_t size, double damping, void* scratch,
                         double* factor, int* failed, cudaStream_t stream);

// Copies the upper triangle of a matrix to the lower one.
void LaunchCompleteSymmetric(int64_t size, double* matrix, cudaStream_t stream);
// matrix[i][i] += value
void LaunchAddToDiagonal(int64_t size, double value, double* matrix, cudaStream_t stream);
void LaunchCopyDiagonal(const double* matrix, int64_t size, double* diagonal, cudaStream_t stream);

// --- streams.cu ---

void LaunchNormalize(const float* hidden, const float* weight, float epsilon, int64_t num_tokens,
                     int64_t width, float* out, cudaStream_t stream);

struct AttentionArguments {
  int num_heads;
  int num_kv_heads;
  int head_dim;  // at most kMostHeadDim
  float epsilon;
  const float* query_norm;           // [head_dim] or null
  const float* key_norm;             // [head_dim] or null
  const float* inverse_frequencies;  // [head_dim / 2] or null
  const int* first_tokens;           // [num_tokens]: the first one of the token's window
  int64_t num_tokens;
};
inline constexpr int kMostHeadDim = 256;
// Queries that go over the keys together: a block. `tiles` [num_tiles]: the first token of each;
// none spans two windows, each ends at the next or with its window.
inline constexpr int kQueriesPerTile = 32;
struct QueryTile {
  int first_token;
  int num_tokens;
};
void LaunchAttention(const AttentionArguments& arguments, const QueryTile* tiles, int num_tiles,
                     float* qkv, float* out, cudaStream_t stream);

void LaunchGate(const float* gate_up, int64_t width, int64_t num_tokens, float* out,
                cudaStream_t stream);
void LaunchAdd(const float* values, int64_t count, float* out, cudaStream_t stream);
void LaunchCopyRows(const float* from, int64_t width, const int64_t* rows, int64_t num_rows,
                    float* to, cudaStream_t stream);

// target [num_tokens, width] = dense - compressed - bias; `bias` may be null.
void LaunchTarget(const float* dense, const float* compressed, const float* bias,
                  int64_t num_tokens, int64_t width, float* target, cudaStream_t stream);
// out [width] += sums of squares of the columns. `workspace`: kColumnSumSlices * width doubles.
inline constexpr int64_t kColumnSumSlices = 64;
void LaunchColumnSquares(const float* matrix, int64_t num_rows, int64_t width, double* out,
                         double* workspace, cudaStream_t stream);
// sums [2 * kCompareBlocks]: of (a - b)^2 and of b^2, to be added.
inline constexpr int kCompareBlocks = 512;
void LaunchCompare(const float* a, const float* b, int64_t count, double* sums,
                   cudaStream_t stream);

// FitDevice::CrossEntropies.
void LaunchCrossEntropies(const float* reference, const float* logits, int64_t num_tokens,
                          int64_t vocab_size, const double* scales, int num_scales, double* losses,
                          cudaStream_t stream);

// --- fold_fit.cu ---

// The columns of each group, in the order of rounding: `first` [groups + 1] into `columns` [cols];
// `signs` [cols] parallel to them.
struct FoldGroups {
  const int* first;
  const int* columns;
  const float* signs;
  int64_t groups;
};

// diagonal [groups] of the folded moments.
void LaunchFoldDiagonal(const FoldGroups& groups, const double* input, int64_t cols, double prior,
                        double* diagonal, cudaStream_t stream);
// folded [groups, groups] of input [cols, cols].
void LaunchFoldInput(const FoldGroups& groups, const double* input, int64_t cols, double prior,
                     double* folded, cudaStream_t stream);
// folded [rows, groups] of cross [rows, cols].
void LaunchFoldCross(const FoldGroups& groups, const double* cross, const float* weights,
                     int64_t rows, int64_t cols, double prior, double* folded, cudaStream_t stream);

// scales [rows] = mean magnitude of the rows.
void LaunchMeanMagnitudes(const double* matrix, int64_t rows, int64_t width, double* scales,
                          cudaStream_t stream);

// Rounds positions [first, first + count) of theta [rows, size], count at most kRoundBlock, and
// spreads each error over the later ones of them; errors [rows, kRoundBlock].
inline constexpr int64_t kRoundBlock = 64;
void LaunchRound(int64_t first, int64_t count, int64_t rows, int64_t size,
                 const double* inverse_factor, const double* units, const double* limits,
                 const double* scales, const double* theta, int16_t* levels, double* errors,
                 cudaStream_t stream);

// weights [rows, size] = levels * units.
void LaunchLevelWeights(const int16_t* levels, const double* units, int64_t rows, int64_t size,
                        double* weights, cudaStream_t stream);

// Changes single levels as long as that lowers the error. `products` [rows, size] is weights times
// input, and is changed. `max_shared_bytes`: that a block can have.
void LaunchImprove(const double* input, const double* cross, const double* units,
                   const double* limits, int64_t rows, int64_t size, int num_passes,
                   double* products, int16_t* levels, float* scales, int max_shared_bytes,
                   cudaStream_t stream);

// out[row][order[position]] = levels[row][position].
void LaunchPermuteLevels(const int16_t* levels, const int* order, int64_t rows, int64_t size,
                         int16_t* out, cudaStream_t stream);

// sums [rows] = sum over columns of products * weights, both [rows, cols].
void LaunchRowDots(const double* products, const float* weights, int64_t rows, int64_t cols,
                   double* sums, cudaStream_t stream);
// sums [cols] = sum over rows of weights * cross.
void LaunchColumnDots(const float* weights, const double* cross, int64_t rows, int64_t cols,
                      double* sums, cudaStream_t stream);
// out [count] *= values.
void LaunchMultiply(const double* values, int64_t count, double* out, cudaStream_t stream);
// y [size] = R x or R^T x, of R [size, size].
void LaunchMatrixVector(const double* matrix, int64_t size, bool transposed, const double* x,
                        double* y, cudaStream_t stream);

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_COMPRESS_CUDA_FIT_KERNELS_H_
