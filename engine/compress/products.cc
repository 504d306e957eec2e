#include "engine/compress/products.h"

#include <algorithm>
#include <cstring>
#include <vector>

// A tile of kRows x kVectors vectors of sums stays in registers over all tokens:
//
//   per token: kVectors loads of b, kRows broadcasts of a, kRows * kVectors multiply-adds
//
// Written with the compilers' generic vectors, compiled once for each instruction set.

namespace ultrasketch {
namespace {

template <int kBytes>
struct VectorOf {
  typedef float Type __attribute__((vector_size(kBytes), aligned(4), may_alias));
};

// tile[row][column] = sum over t of a[t * kRows + row] * b[t * tile_width + column].
template <int kBytes, int kRows, int kVectors>
inline __attribute__((always_inline)) void TileOfSums(const float* a, const float* b,
                                                      int64_t num_tokens, float* tile) {
  using Vector = typename VectorOf<kBytes>::Type;
  constexpr int kLanes = kBytes / static_cast<int>(sizeof(float));
  Vector sums[kRows][kVectors] = {};
  for (int64_t token = 0; token < num_tokens; ++token) {
    Vector columns[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      columns[v] = *reinterpret_cast<const Vector*>(b + (token * kVectors + v) * kLanes);
    }
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[row][v] += a[token * kRows + row] * columns[v];
    }
  }
  for (int row = 0; row < kRows; ++row) {
    for (int v = 0; v < kVectors; ++v) {
      *reinterpret_cast<Vector*>(tile + (row * kVectors + v) * kLanes) = sums[row][v];
    }
  }
}

using TileFunction = void (*)(const float* a, const float* b, int64_t num_tokens, float* tile);

struct TileKernel {
  int64_t rows;
  int64_t columns;
  TileFunction function;
};

void TilePortable(const float* a, const float* b, int64_t num_tokens, float* tile) {
  TileOfSums<16, 4, 2>(a, b, num_tokens, tile);
}

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) void TileAvx2(const float* a, const float* b,
                                                  int64_t num_tokens, float* tile) {
  TileOfSums<32, 6, 2>(a, b, num_tokens, tile);
}

__attribute__((target("avx512f"))) void TileAvx512(const float* a, const float* b,
                                                   int64_t num_tokens, float* tile) {
  TileOfSums<64, 12, 2>(a, b, num_tokens, tile);
}
#endif

const TileKernel& FastestTile() {
  static const TileKernel kernel = [] {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) return TileKernel{12, 32, TileAvx512};
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
      return TileKernel{6, 16, TileAvx2};
    }
#endif
    return TileKernel{4, 8, TilePortable};
  }();
  return kernel;
}

// Columns [first, first + count) of `matrix` as [num_tokens, tile_width], zero beyond `count`.
void PackColumns(const float* matrix, int64_t width, int64_t num_tokens, int64_t first,
                 int64_t count, int64_t tile_width, float* packed) {
  for (int64_t token = 0; token < num_tokens; ++token) {
    float* out = packed + token * tile_width;
    std::copy_n(matrix + token * width + first, count, out);
    std::fill(out + count, out + tile_width, 0.0f);
  }
}

// Rows [first, first + count) of `matrix` [..., num_columns] as [num_columns, tile_width].
void PackRows(const float* matrix, int64_t num_columns, int64_t first, int64_t count,
              int64_t tile_width, float* packed) {
  for (int64_t row = 0; row < tile_width; ++row) {
    const float* in = matrix + (first + row) * num_columns;
    for (int64_t column = 0; column < num_columns; ++column) {
      packed[column * tile_width + row] = row < count ? in[column] : 0.0f;
    }
  }
}

// a [num_tokens, a_width], or its transpose where that is what `a` points to.
struct LeftMatrix {
  const float* a;
  int64_t width;
  int64_t num_tokens;
  bool is_transposed = false;
};

// A matrix product cut into tiles of the fastest kernel, column by column. Both matrices are packed
// tile by tile, so that a kernel reads them in order: rows of an unpacked matrix are a page apart.
struct TileGrid {
  const TileKernel& kernel;
  LeftMatrix left;
  const float* b;
  int64_t b_width;
  bool upper_triangle = false;  // leave out tiles below the diagonal

  int64_t row_tiles() const { return (left.width + kernel.rows - 1) / kernel.rows; }
  int64_t num_tiles() const {
    return row_tiles() * ((b_width + kernel.columns - 1) / kernel.columns);
  }
  // Floats of a packed tile of the left matrix.
  int64_t row_tile_size() const { return left.num_tokens * kernel.rows; }

  void PackRowTile(int64_t index, float* packed_rows) const {
    const int64_t first = index * kernel.rows;
    const int64_t count = std::min(kernel.rows, left.width - first);
    float* out = packed_rows + index * row_tile_size();
    if (left.is_transposed) {
      PackRows(left.a, left.num_tokens, first, count, kernel.rows, out);
    } else {
      PackColumns(left.a, left.width, left.num_tokens, first, count, kernel.rows, out);
    }
  }

  // Tiles [begin, end) added to `out`. A tile of b is packed once for all tiles of its column.
  template <typename Output>
  void AddTiles(int64_t begin, int64_t end, const float* packed_rows, Output* out) const {
    thread_local std::vector<float> packed_columns;
    thread_local std::vector<float> tile;
    packed_columns.resize(static_cast<size_t>(left.num_tokens * kernel.columns));
    tile.resize(static_cast<size_t>(kernel.rows * kernel.columns));
    int64_t packed_tile = -1;
    for (int64_t index = begin; index < end; ++index) {
      const int64_t column_tile = index / row_tiles();
      const int64_t row_tile = index % row_tiles();
      const int64_t first_column = column_tile * kernel.columns;
      const int64_t num_columns = std::min(kernel.columns, b_width - first_column);
      const int64_t first_row = row_tile * kernel.rows;
      const int64_t num_rows = std::min(kernel.rows, left.width - first_row);
      if (upper_triangle && first_row >= first_column + num_columns) continue;
      if (column_tile != packed_tile) {
        PackColumns(b, b_width, left.num_tokens, first_column, num_columns, kernel.columns,
                    packed_columns.data());
        packed_tile = column_tile;
      }
      kernel.function(packed_rows + row_tile * row_tile_size(), packed_columns.data(),
                      left.num_tokens, tile.data());
      for (int64_t row = 0; row < num_rows; ++row) {
        Output* out_row = out + (first_row + row) * b_width + first_column;
        const float* tile_row = tile.data() + row * kernel.columns;
        for (int64_t column = 0; column < num_columns; ++column) {
          out_row[column] += static_cast<Output>(tile_row[column]);
        }
      }
    }
  }
};

// The calling thread's memory for the packed left matrix.
float* PackedRows(const TileGrid& grid) {
  thread_local std::vector<float> packed;
  packed.resize(static_cast<size_t>(grid.row_tiles() * grid.row_tile_size()));
  return packed.data();
}

template <typename Output>
void AddInParallel(const TileGrid& grid, Output* out, ThreadPool& pool) {
  float* const packed_rows = PackedRows(grid);
  pool.ParallelFor(grid.row_tiles(), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t index = begin; index < end; ++index) grid.PackRowTile(index, packed_rows);
  });
  pool.ParallelFor(grid.num_tiles(), 1, [&](int64_t begin, int64_t end, int) {
    grid.AddTiles(begin, end, packed_rows, out);
  });
}

}  // namespace

void AddOuterProducts(const float* a, int64_t a_width, const float* b, int64_t b_width,
                      int64_t num_tokens, double* out, ThreadPool& pool) {
  AddInParallel({FastestTile(), {a, a_width, num_tokens}, b, b_width}, out, pool);
}

void AddSelfProducts(const float* a, int64_t width, int64_t num_tokens, double* out,
                     ThreadPool& pool) {
  AddInParallel({FastestTile(), {a, width, num_tokens}, a, width, true}, out, pool);
}

void CompleteSymmetric(int64_t width, double* matrix) {
  for (int64_t row = 1; row < width; ++row) {
    for (int64_t column = 0; column < row; ++column) {
      matrix[row * width + column] = matrix[column * width + row];
    }
  }
}

void OuterProducts(const float* a, int64_t a_width, const float* b, int64_t b_width,
                   int64_t num_tokens, float* out) {
  std::fill(out, out + a_width * b_width, 0.0f);
  const TileGrid grid = {FastestTile(), {a, a_width, num_tokens}, b, b_width};
  float* const packed_rows = PackedRows(grid);
  for (int64_t index = 0; index < grid.row_tiles(); ++index) grid.PackRowTile(index, packed_rows);
  grid.AddTiles(0, grid.num_tiles(), packed_rows, out);
}

void MultiplyTransposed(const float* x, const float* transposed_weights, int64_t num_tokens,
                        int64_t rows, int64_t cols, float* out, ThreadPool& pool) {
  std::fill(out, out + num_tokens * rows, 0.0f);
  AddInParallel({FastestTile(), {x, num_tokens, cols, true}, transposed_weights, rows}, out, pool);
}

void Transpose(const float* in, int64_t rows, int64_t cols, float* out, ThreadPool& pool) {
  constexpr int64_t kTile = 32;
  pool.ParallelFor(rows, kTile, [&](int64_t begin, int64_t end, int) {
    for (int64_t first_col = 0; first_col < cols; first_col += kTile) {
      const int64_t last_col = std::min(cols, first_col + kTile);
      for (int64_t row = begin; row < end; ++row) {
        for (int64_t col = first_col; col < last_col; ++col)
          out[col * rows + row] = in[row * cols + col];
      }
    }
  });
}

}  // namespace ultrasketch
