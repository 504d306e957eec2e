// Attention of prompts.
//
//   block    up to 64 queries of one key head: four tiles of neighbouring tokens, one a warp
//   stages   a piece of 64 keys and values in shared memory, read by all four warps, and the next
//            one on its way
//
// Each warp keeps the weighted values of its tile: those of the chunk at hand in registers, and
// those of the chunks before it. Bound: tensor cores (two instructions for each eight keys and
// eight dimensions), and one exponential for each query and key.
#include "engine/backends/cuda/attention_stage.cuh"
#include "engine/backends/cuda/producer_launch.cuh"

namespace ultrasketch::cuda {
namespace {

constexpr int kThreads = kPromptTiles * 32;

template <int kDims>
struct PromptShared {
  static constexpr int kQueryBytes = kAttentionRows * RowStride(kDims) * 2;
  // The weighted values of the chunks before: in registers where only two blocks find room anyway.
  static constexpr bool kHasRunning = kDims <= 64;
  static constexpr int kRunningBytes = kHasRunning ? kAttentionRows * kDims * 4 : 0;
  static constexpr int kBytes =
      2 * PieceStage<kDims>::kBytes + kPromptTiles * (kQueryBytes + kRunningBytes);
};

// Weighted values of the chunks before, of the calling lane: of each tile of eight dimensions, two
// in row l / 4 and two in row l / 4 + 8.
template <int kDims>
class RunningValues {
 public:
  __device__ explicit RunningValues(uint8_t* warp_memory)
      : shared_(reinterpret_cast<float4*>(warp_memory) + threadIdx.x % 32) {
#pragma unroll
    for (int tile = 0; tile < kDims / 8; ++tile) Set(tile, {});
  }
  __device__ float4 Get(int tile) const {
    return kIsShared ? shared_[tile * 32] : values_[kIsShared ? 0 : tile];
  }
  __device__ void Set(int tile, const float4& values) {
    if (kIsShared) {
      shared_[tile * 32] = values;
    } else {
      values_[kIsShared ? 0 : tile] = values;
    }
  }

 private:
  static constexpr bool kIsShared = PromptShared<kDims>::kHasRunning;
  float4* shared_;
  float4 values_[kIsShared ? 1 : kDims / 8];
};

// Maximum and sum of this lane's two rows.
struct RowSums {
  float maximum[2] = {-INFINITY, -INFINITY};
  float sum[2] = {};

  // Merges others, and returns with which weights.
  __device__ void Merge(const float (&added_maximum)[2], const float (&added_sum)[2],
                        MergeWeights (&merge)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      merge[half] = WeighMerge(maximum[half], added_maximum[half]);
      maximum[half] = merge[half].maximum;
      sum[half] = cuda::Merge(sum[half], added_sum[half], merge[half]);
    }
  }
};

// This warp's tile of an item.
__device__ AttentionItem OwnItem(const AttentionItem& item, const AttentionGeometry& geometry,
                                 int warp) {
  const int tokens = geometry.tokens_per_tile();
  AttentionItem own = item;
  own.first_token += warp * tokens;
  own.num_keys += warp * tokens;
  own.num_tokens = max(0, min(tokens, item.num_tokens - warp * tokens));
  return own;
}

// Grid: (items, key heads * tiles of their query heads). The last items have most keys, and begin
// first.
template <int kDims>
__global__ void __launch_bounds__(kThreads, kDims <= 64 ? 3 : 2)
    AttendPrompt(const __grid_constant__ AttentionArguments arguments) {
  extern __shared__ __align__(128) uint8_t memory[];
  using Stage = PieceStage<kDims>;
  AllowNextKernel();
  const AttentionItem item = arguments.prompt_items[gridDim.x - 1 - blockIdx.x];
  if (item.num_tokens == 0) {
    WaitForKernelBefore();
    return;
  }
  const AttentionGeometry& geometry = arguments.geometry;
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / 32;
  const int lane = thread % 32;
  const Tile tile(geometry, OwnItem(item, geometry, warp), static_cast<int>(blockIdx.y));
  const int most_keys = item.num_keys + item.num_tokens - 1;
  const int own_keys = tile.item.num_tokens > 0 ? tile.MostKeys() : 0;
  auto* queries = reinterpret_cast<__half*>(memory + 2 * Stage::kBytes +
                                            warp * PromptShared<kDims>::kQueryBytes);
  for (int stage = 0; stage < 2; ++stage) {
    ClearPadding<kDims>(geometry.head_dim, memory + stage * Stage::kBytes, thread, kThreads);
  }
  PieceCopier<kDims, kThreads> copier(tile, arguments, thread);
  copier.Find(0, most_keys);
  WaitForKernelBefore();

  const auto copy_piece = [&](int piece) {
    copier.Copy(0, kAttentionPiece / kRunKeys, memory + piece % 2 * Stage::kBytes);
    CommitCopies();
  };
  copy_piece(0);
  LoadQueries(tile, arguments.qkv, queries, /*warp=*/0, /*num_warps=*/1);
  const int num_keys[2] = {tile.NumKeys(lane / 4), tile.NumKeys(lane / 4 + 8)};

  RunningValues<kDims> running(memory + 2 * Stage::kBytes +
                               kPromptTiles * PromptShared<kDims>::kQueryBytes +
                               warp * PromptShared<kDims>::kRunningBytes);
  RowSums running_sums;
  float chunk[kDims / 8][4] = {};
  RowSums chunk_sums;
  const int num_pieces = (most_keys + kAttentionPiece - 1) / kAttentionPiece;
  for (int piece = 0; piece < num_pieces; ++piece) {
    copier.Find((piece + 1) * kAttentionPiece, most_keys);
    WaitForCopies<0>();
    // The piece is there for all, and all are done with the one whose place the next one takes.
    __syncthreads();
    if (piece + 1 < num_pieces) copy_piece(piece + 1);
    const int first_key = piece * kAttentionPiece;
    uint8_t* const stage = memory + piece % 2 * Stage::kBytes;
    if (first_key + kAttentionPiece > most_keys) {
      ClearValues<kDims>(most_keys - first_key, stage, thread, kThreads);
      __syncthreads();
    }
    if (first_key < own_keys) {
      float scores[kKeyTiles][4] = {};
      ScorePiece<kDims>(queries, stage, scores);
      const PieceWeights weights = WeighScores(scores, first_key, num_keys);
      MergeWeights merge[2];
      chunk_sums.Merge(weights.maximum, weights.sum, merge);
      WeighPiece<kDims>(weights, stage, [&](int dims, const float(&sums)[4]) {
#pragma unroll
        for (int i = 0; i < 4; ++i) chunk[dims][i] = Merge(chunk[dims][i], sums[i], merge[i / 2]);
      });
    }
    constexpr int kPiecesPerChunk = kAttentionChunk / kAttentionPiece;
    if (piece % kPiecesPerChunk == kPiecesPerChunk - 1 || piece + 1 == num_pieces) {
      MergeWeights merge[2];
      running_sums.Merge(chunk_sums.maximum, chunk_sums.sum, merge);
      chunk_sums = RowSums();
#pragma unroll
      for (int dims = 0; dims < kDims / 8; ++dims) {
        float(&added)[4] = chunk[dims];
        const float4 before = running.Get(dims);
        running.Set(dims,
                    {Merge(before.x, added[0], merge[0]), Merge(before.y, added[1], merge[0]),
                     Merge(before.z, added[2], merge[1]), Merge(before.w, added[3], merge[1])});
#pragma unroll
        for (int i = 0; i < 4; ++i) added[i] = 0.0f;
      }
    }
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = lane / 4 + 8 * half;
    if (!tile.IsRow(row)) continue;
    const int64_t token = tile.item.first_token + tile.TokenOf(row) - arguments.first_token;
    const int64_t head = tile.first_head + tile.HeadOf(row);
    float* out = arguments.attended + token * geometry.query_width() + head * geometry.head_dim +
                 2 * (lane % 4);
    const float inverse = InverseSum(running_sums.sum[half]);
#pragma unroll
    for (int dims = 0; dims < kDims / 8; ++dims) {
      if (dims * 8 >= geometry.head_dim) break;
      const float4 values = running.Get(dims);
      *reinterpret_cast<float2*>(out + dims * 8) = {
          __fmul_rn(half == 0 ? values.x : values.z, inverse),
          __fmul_rn(half == 0 ? values.y : values.w, inverse)};
    }
  }
}

template <int kDims>
cudaError_t Launch(const AttentionArguments& arguments, cudaStream_t stream) {
  constexpr int kSharedBytes = PromptShared<kDims>::kBytes;
  if (const cudaError_t error = AllowSharedMemory(AttendPrompt<kDims>, kSharedBytes);
      error != cudaSuccess) {
    return error;
  }
  const AttentionGeometry& geometry = arguments.geometry;
  const dim3 grid(static_cast<unsigned>(arguments.num_prompt_items),
                  static_cast<unsigned>(geometry.num_kv_heads * geometry.tiles_per_group()));
  return LaunchKernel(AttendPrompt<kDims>, grid, kThreads, kSharedBytes, stream, arguments);
}

}  // namespace

cudaError_t LaunchPromptAttention(const AttentionArguments& arguments, cudaStream_t stream) {
  switch (PaddedHeadDim(arguments.geometry.head_dim)) {
    case 32:
      return Launch<32>(arguments, stream);
    case 64:
      return Launch<64>(arguments, stream);
    case 96:
      return Launch<96>(arguments, stream);
    default:
      return Launch<128>(arguments, stream);
  }
}

}  // namespace ultrasketch::cuda
