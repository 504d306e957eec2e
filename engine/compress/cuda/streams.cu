// What a calibration's streams do between the linear sites, and sums over them.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "engine/compress/cuda/fit_kernels.h"
#include "engine/compress/cuda/reduce.cuh"

namespace ultrasketch::cuda {
namespace {

constexpr int kThreads = 256;

unsigned Blocks(int64_t count) { return static_cast<unsigned>((count + kThreads - 1) / kThreads); }

// A block has a token.
__global__ void NormalizeKernel(const float* hidden, const float* weight, float epsilon,
                                int64_t width, float* out) {
  __shared__ double scratch[kThreads / 32];
  const float* const x = hidden + blockIdx.x * width;
  double energy = 0;
  for (int64_t i = threadIdx.x; i < width; i += kThreads) {
    energy += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  }
  energy = BlockSum<kThreads>(energy, scratch);
  const auto scale = static_cast<float>(
      1 / sqrt(energy / static_cast<double>(width) + static_cast<double>(epsilon)));
  for (int64_t i = threadIdx.x; i < width; i += kThreads) {
    out[blockIdx.x * width + i] = x[i] * scale * weight[i];
  }
}

// A warp has a head of a query or key: normalizes and rotates it.
__global__ void RotateKernel(const AttentionArguments arguments, float* qkv) {
  const int num_heads = arguments.num_heads + arguments.num_kv_heads;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (index >= arguments.num_tokens * num_heads) return;
  const int64_t token = index / num_heads;
  const int head = static_cast<int>(index % num_heads);
  const int head_dim = arguments.head_dim;
  const int64_t width =
      static_cast<int64_t>(arguments.num_heads + 2 * arguments.num_kv_heads) * head_dim;
  float* const values = qkv + token * width + static_cast<int64_t>(head) * head_dim;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const float* const norm = head < arguments.num_heads ? arguments.query_norm : arguments.key_norm;
  if (norm != nullptr) {
    double energy = 0;
    for (int i = lane; i < head_dim; i += 32) {
      energy += static_cast<double>(values[i]) * static_cast<double>(values[i]);
    }
    energy = WarpSum(energy);
    const auto scale =
        static_cast<float>(1 / sqrt(energy / head_dim + static_cast<double>(arguments.epsilon)));
    for (int i = lane; i < head_dim; i += 32) values[i] = values[i] * scale * norm[i];
    __syncwarp();
  }
  if (arguments.inverse_frequencies == nullptr) return;
  const auto position = static_cast<float>(token - arguments.first_tokens[token]);
  const int half = head_dim / 2;
  for (int i = lane; i < half; i += 32) {
    const float angle = position * arguments.inverse_frequencies[i];
    const float cosine = cosf(angle);
    const float sine = sinf(angle);
    const float first = values[i];
    const float second = values[i + half];
    values[i] = first * cosine - second * sine;
    values[i + half] = second * cosine + first * sine;
  }
}

constexpr int kTile = kQueriesPerTile;  // also keys

int64_t AttentionSharedBytes(int head_dim) {
  return static_cast<int64_t>(sizeof(float)) * (2 * kTile * (head_dim + 1) + kTile * (kTile + 1));
}

// Causal attention of a tile of queries of one head, over tiles of keys with a running maximum. Of
// 16 x 16 threads one has two queries, two keys of a tile and every sixteenth output.
template <int kParts>
__global__ void __launch_bounds__(kThreads)
    AttentionKernel(const AttentionArguments arguments, const QueryTile* tiles, const float* qkv,
                    float* out) {
  extern __shared__ float shared[];
  const int head_dim = arguments.head_dim;
  const int stride = head_dim + 1;
  float* const queries = shared;
  float* const keys = queries + kTile * stride;  // then the values
  float* const weights = keys + kTile * stride;  // [kTile][kTile + 1]
  const QueryTile tile = tiles[blockIdx.x];
  const int head = static_cast<int>(blockIdx.y);
  const int kv_head = head / (arguments.num_heads / arguments.num_kv_heads);
  const int64_t width =
      static_cast<int64_t>(arguments.num_heads + 2 * arguments.num_kv_heads) * head_dim;
  const float* const query_rows = qkv + static_cast<int64_t>(head) * head_dim;
  const float* const key_rows =
      qkv + static_cast<int64_t>(arguments.num_heads + kv_head) * head_dim;
  const float* const value_rows =
      key_rows + static_cast<int64_t>(arguments.num_kv_heads) * head_dim;
  const int first_key = arguments.first_tokens[tile.first_token];
  const int end = tile.first_token + tile.num_tokens;
  const int tid = static_cast<int>(threadIdx.x);
  const int tx = tid % 16;
  const int ty = tid / 16;
  const float scale = 1 / sqrtf(static_cast<float>(head_dim));

  const auto load = [&](const float* rows, int first, float* to) {
    for (int i = tid; i < kTile * head_dim; i += kThreads) {
      const int row = i / head_dim;
      const int column = i % head_dim;
      to[row * stride + column] =
          first + row < end ? rows[static_cast<int64_t>(first + row) * width + column] : 0.0f;
    }
  };
  load(query_rows, tile.first_token, queries);

  float maxima[2] = {-INFINITY, -INFINITY};
  float sums[2] = {};
  float results[2][kParts] = {};
  for (int key0 = first_key; key0 < end; key0 += kTile) {
    __syncthreads();
    load(key_rows, key0, keys);
    __syncthreads();
    float scores[2][2] = {};
    for (int i = 0; i < head_dim; ++i) {
      const float q0 = queries[(2 * ty) * stride + i];
      const float q1 = queries[(2 * ty + 1) * stride + i];
      const float k0 = keys[tx * stride + i];
      const float k1 = keys[(tx + 16) * stride + i];
      scores[0][0] += q0 * k0;
      scores[0][1] += q0 * k1;
      scores[1][0] += q1 * k0;
      scores[1][1] += q1 * k1;
    }
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const int query = tile.first_token + 2 * ty + row;
      float largest = maxima[row];
#pragma unroll
      for (int column = 0; column < 2; ++column) {
        float& score = scores[row][column];
        score = key0 + tx + 16 * column <= query ? score * scale : -INFINITY;
        largest = fmaxf(largest, score);
      }
#pragma unroll
      for (int offset = 8; offset > 0; offset /= 2) {
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, offset));
      }
      const float shrink = expf(maxima[row] - largest);
      maxima[row] = largest;
      float sum = 0;
#pragma unroll
      for (int column = 0; column < 2; ++column) {
        const float weight = expf(scores[row][column] - largest);
        weights[(2 * ty + row) * (kTile + 1) + tx + 16 * column] = weight;
        sum += weight;
      }
      sums[row] = sums[row] * shrink + sum;
#pragma unroll
      for (int part = 0; part < kParts; ++part) results[row][part] *= shrink;
    }
    __syncthreads();
    load(value_rows, key0, keys);
    __syncthreads();
    for (int key = 0; key < kTile; ++key) {
      const float w0 = weights[(2 * ty) * (kTile + 1) + key];
      const float w1 = weights[(2 * ty + 1) * (kTile + 1) + key];
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const int column = tx + 16 * part;
        const float value = column < head_dim ? keys[key * stride + column] : 0.0f;
        results[0][part] += w0 * value;
        results[1][part] += w1 * value;
      }
    }
  }
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    float sum = sums[row];
#pragma unroll
    for (int offset = 8; offset > 0; offset /= 2) {
      sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    }
    if (2 * ty + row >= tile.num_tokens) continue;
    float* const out_row =
        out + (static_cast<int64_t>(tile.first_token + 2 * ty + row) * arguments.num_heads + head) *
                  head_dim;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const int column = tx + 16 * part;
      if (column < head_dim) out_row[column] = results[row][part] / sum;
    }
  }
}

template <int kParts>
void LaunchAttentionParts(const AttentionArguments& arguments, const QueryTile* tiles,
                          int num_tiles, const float* qkv, float* out, cudaStream_t stream) {
  const int64_t bytes = AttentionSharedBytes(arguments.head_dim);
  static_cast<void>(cudaFuncSetAttribute(AttentionKernel<kParts>,
                                         cudaFuncAttributeMaxDynamicSharedMemorySize,
                                         static_cast<int>(bytes)));
  AttentionKernel<kParts>
      <<<dim3(static_cast<unsigned>(num_tiles), static_cast<unsigned>(arguments.num_heads)),
         kThreads, static_cast<size_t>(bytes), stream>>>(arguments, tiles, qkv, out);
}

__global__ void GateKernel(const float* gate_up, int64_t width, int64_t count, float* out) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= count) return;
  const int64_t token = index / width;
  const int64_t column = index % width;
  const float gate = gate_up[token * 2 * width + column];
  const float up = gate_up[token * 2 * width + width + column];
  const float small = expf(-fabsf(gate));
  const float sigmoid = (gate < 0.0f ? small : 1.0f) / (1.0f + small);
  out[index] = gate * sigmoid * up;
}

__global__ void AddKernel(const float* values, int64_t count, float* out) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index < count) out[index] += values[index];
}

__global__ void CopyRowsKernel(const float* from, int64_t width, const int64_t* rows, float* to) {
  const float* const row = from + rows[blockIdx.x] * width;
  for (int64_t i = threadIdx.x; i < width; i += kThreads) to[blockIdx.x * width + i] = row[i];
}

__global__ void TargetKernel(const float* dense, const float* compressed, const float* bias,
                             int64_t width, int64_t count, float* target) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= count) return;
  float value = dense[index] - compressed[index];
  if (bias != nullptr) value -= bias[index % width];
  target[index] = value;
}

// A thread has a column of a slice of the rows.
__global__ void ColumnSquaresKernel(const float* matrix, int64_t num_rows, int64_t width,
                                    double* partial) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (column >= width) return;
  const int64_t rows_per_slice = (num_rows + kColumnSumSlices - 1) / kColumnSumSlices;
  const int64_t first = blockIdx.y * rows_per_slice;
  const int64_t last = min(num_rows, first + rows_per_slice);
  double sum = 0;
  for (int64_t row = first; row < last; ++row) {
    const auto value = static_cast<double>(matrix[row * width + column]);
    sum += value * value;
  }
  partial[blockIdx.y * width + column] = sum;
}

__global__ void AddPartialKernel(const double* partial, int64_t width, double* out) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (column >= width) return;
  double sum = out[column];
  for (int64_t slice = 0; slice < kColumnSumSlices; ++slice) sum += partial[slice * width + column];
  out[column] = sum;
}

__global__ void CompareKernel(const float* a, const float* b, int64_t count, double* sums) {
  __shared__ double scratch[kThreads / 32];
  double error = 0;
  double energy = 0;
  const int64_t step = static_cast<int64_t>(kCompareBlocks) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += step) {
    const double difference = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    error += difference * difference;
    energy += static_cast<double>(b[i]) * static_cast<double>(b[i]);
  }
  error = BlockSum<kThreads>(error, scratch);
  energy = BlockSum<kThreads>(energy, scratch);
  if (threadIdx.x == 0) {
    sums[2 * blockIdx.x] = error;
    sums[2 * blockIdx.x + 1] = energy;
  }
}

// A block has a token.
__global__ void CrossEntropiesKernel(const float* reference, const float* logits,
                                     int64_t vocab_size, const double* scales, int num_scales,
                                     double* losses) {
  __shared__ double scratch[kThreads / 32];
  const float* const p = reference + blockIdx.x * vocab_size;
  const float* const q = logits + blockIdx.x * vocab_size;
  float p_maximum = -INFINITY;
  float q_maximum = -INFINITY;
  for (int64_t i = threadIdx.x; i < vocab_size; i += kThreads) {
    p_maximum = fmaxf(p_maximum, p[i]);
    q_maximum = fmaxf(q_maximum, q[i]);
  }
  p_maximum = BlockMaximum<kThreads>(p_maximum, scratch);
  q_maximum = BlockMaximum<kThreads>(q_maximum, scratch);
  float sum = 0;
  float weighted = 0;
  for (int64_t i = threadIdx.x; i < vocab_size; i += kThreads) {
    const float value = expf(p[i] - p_maximum);
    sum += value;
    weighted += value * q[i];
  }
  const double p_sum = BlockSum<kThreads>(static_cast<double>(sum), scratch);
  const double expected = BlockSum<kThreads>(static_cast<double>(weighted), scratch) / p_sum;
  for (int index = 0; index < num_scales; ++index) {
    const auto scale = static_cast<float>(scales[index]);
    sum = 0;
    for (int64_t i = threadIdx.x; i < vocab_size; i += kThreads) {
      sum += expf((q[i] - q_maximum) * scale);
    }
    const double total = BlockSum<kThreads>(static_cast<double>(sum), scratch);
    if (threadIdx.x == 0) {
      losses[blockIdx.x * static_cast<unsigned>(num_scales) + static_cast<unsigned>(index)] =
          log(total) + scales[index] * (static_cast<double>(q_maximum) - expected);
    }
  }
}

}  // namespace

void LaunchNormalize(const float* hidden, const float* weight, float epsilon, int64_t num_tokens,
                     int64_t width, float* out, cudaStream_t stream) {
  if (num_tokens == 0) return;
  NormalizeKernel<<<static_cast<unsigned>(num_tokens), kThreads, 0, stream>>>(hidden, weight,
                                                                              epsilon, width, out);
}

void LaunchAttention(const AttentionArguments& arguments, const QueryTile* tiles, int num_tiles,
                     float* qkv, float* out, cudaStream_t stream) {
  if (num_tiles == 0) return;
  const int64_t heads = arguments.num_tokens * (arguments.num_heads + arguments.num_kv_heads);
  RotateKernel<<<static_cast<unsigned>((heads + kThreads / 32 - 1) / (kThreads / 32)), kThreads, 0,
                 stream>>>(arguments, qkv);
  if (arguments.head_dim <= 64) {
    LaunchAttentionParts<4>(arguments, tiles, num_tiles, qkv, out, stream);
  } else if (arguments.head_dim <= 128) {
    LaunchAttentionParts<8>(arguments, tiles, num_tiles, qkv, out, stream);
  } else {
    LaunchAttentionParts<16>(arguments, tiles, num_tiles, qkv, out, stream);
  }
}

void LaunchGate(const float* gate_up, int64_t width, int64_t num_tokens, float* out,
                cudaStream_t stream) {
  const int64_t count = width * num_tokens;
  if (count == 0) return;
  GateKernel<<<Blocks(count), kThreads, 0, stream>>>(gate_up, width, count, out);
}

void LaunchAdd(const float* values, int64_t count, float* out, cudaStream_t stream) {
  if (count == 0) return;
  AddKernel<<<Blocks(count), kThreads, 0, stream>>>(values, count, out);
}

void LaunchCopyRows(const float* from, int64_t width, const int64_t* rows, int64_t num_rows,
                    float* to, cudaStream_t stream) {
  if (num_rows == 0) return;
  CopyRowsKernel<<<static_cast<unsigned>(num_rows), kThreads, 0, stream>>>(from, width, rows, to);
}

void LaunchTarget(const float* dense, const float* compressed, const float* bias,
                  int64_t num_tokens, int64_t width, float* target, cudaStream_t stream) {
  const int64_t count = num_tokens * width;
  if (count == 0) return;
  TargetKernel<<<Blocks(count), kThreads, 0, stream>>>(dense, compressed, bias, width, count,
                                                       target);
}

void LaunchColumnSquares(const float* matrix, int64_t num_rows, int64_t width, double* out,
                         double* workspace, cudaStream_t stream) {
  ColumnSquaresKernel<<<dim3(Blocks(width), static_cast<unsigned>(kColumnSumSlices)), kThreads, 0,
                        stream>>>(matrix, num_rows, width, workspace);
  AddPartialKernel<<<Blocks(width), kThreads, 0, stream>>>(workspace, width, out);
}

void LaunchCompare(const float* a, const float* b, int64_t count, double* sums,
                   cudaStream_t stream) {
  CompareKernel<<<kCompareBlocks, kThreads, 0, stream>>>(a, b, count, sums);
}

void LaunchCrossEntropies(const float* reference, const float* logits, int64_t num_tokens,
                          int64_t vocab_size, const double* scales, int num_scales, double* losses,
                          cudaStream_t stream) {
  if (num_tokens == 0) return;
  CrossEntropiesKernel<<<static_cast<unsigned>(num_tokens), kThreads, 0, stream>>>(
      reference, logits, vocab_size, scales, num_scales, losses);
}

}  // namespace ultrasketch::cuda
