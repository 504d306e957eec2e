// Launching products of one or two tokens whose blocks make the inputs themselves
// (fused_product.cuh): what inputs are made of, and how a matrix is divided.
#include <algorithm>
#include <bit>

#include "engine/backends/cuda/fused_product.cuh"
#include "engine/backends/cuda/input_launch.cuh"
#include "engine/backends/cuda/kernels.h"
#include "engine/codecs/fold/cuda/bit_product_skinny.cuh"

namespace ultrasketch::cuda {
namespace {

struct Normalized {
  static constexpr bool kHasInverseRms = true;
  static constexpr int kWarps = 8;
  static constexpr bool kIsPermuted = false;
  static constexpr int kClusterBlocks = 1;
  const float* hidden;
  const float* weight;
  float epsilon;
  int cols;

  struct State {};
  static int64_t StagedBytes(const InputTransform& transform) { return InputBytes(transform); }

  template <int kThreads>
  __device__ State Begin(int /*num_tokens*/, uint8_t* staged) const {
    auto* const weights = reinterpret_cast<float*>(staged);
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x) * 4; i < cols; i += kThreads * 4) {
      if (cols % 4 == 0) {
        CopyAsync16(weights + i, weight + i);
      } else {
#pragma unroll 1
        for (int j = i; j < min(i + 4, cols); ++j) CopyAsync4(weights + j, weight + j);
      }
    }
    return {};
  }
  // Its inverse RMS is summed up when the input is packed, which does not depend on it.
  template <int kThreads>
  struct Loaded {
    SquaresOf<kThreads> squares;
    float absmax;
  };
  template <int kThreads>
  __device__ Loaded<kThreads> Load(const State& /*state*/, int token, const uint8_t* staged,
                                   float* x, const uint16_t* scatter_indices) const {
    Loaded<kThreads> loaded = {};
    const float absmax =
        LoadWeighted<kThreads>(hidden + token * cols, reinterpret_cast<const float*>(staged), cols,
                               NarrowRow{x, scatter_indices}, loaded.squares);
    loaded.absmax = BlockMax<kThreads>(absmax);
    return loaded;
  }
  template <int kThreads>
  __device__ void GiveInverseRms(const Loaded<kThreads>& loaded) const {
    SharedSum<kThreads>().Give(loaded.squares.of_thread);
  }
  template <int kThreads>
  __device__ float TakeInverseRms() const {
    return SquaresOf<kThreads>::InverseRmsOf(SharedSum<kThreads>(), cols, epsilon);
  }

 private:
  template <int kThreads>
  static __device__ typename SquaresOf<kThreads>::Sum& SharedSum() {
    __shared__ typename SquaresOf<kThreads>::Sum sum;
    return sum;
  }
};

// What attention gives, of heads of a multiple of four dimensions.
struct Attended {
  static constexpr bool kHasInverseRms = false;
  static constexpr int kWarps = 8;
  static constexpr bool kIsPermuted = false;
  static constexpr int kClusterBlocks = 1;
  AttentionArguments arguments;
  const AttentionToken* tokens;
  PartialLayout layout;
  int cols;

  // The tokens were there before the step's first kernel.
  struct State {
    AttentionToken first;
    AttentionToken second;
    SplitColumns<kWarps * 32, 4> columns;  // of the first
  };
  static_assert(kMaxFusedTokens == 2);
  static int64_t StagedBytes(const InputTransform& /*transform*/) { return 0; }

  template <int kThreads>
  __device__ State Begin(int num_tokens, uint8_t* /*staged*/) const {
    const AttentionToken first = tokens[0];
    State state = {
        first,
        tokens[num_tokens - 1],
        {arguments.geometry, layout, first.tile_token, static_cast<int>(threadIdx.x) * 4}};
    for (int& offset : state.columns.ranges) Materialize(offset);
    return state;
  }
  template <int kThreads>
  __device__ RowRange Load(const State& state, int token, const uint8_t* /*staged*/, float* x,
                           const uint16_t* scatter_indices) const {
    // By value: a choice of references would put both into memory.
    AttentionToken of_token = state.first;
    SplitColumns<kThreads, 4> columns = state.columns;
    if (token > 0) {
      of_token = state.second;
      columns = {arguments.geometry, layout, of_token.tile_token,
                 static_cast<int>(threadIdx.x) * 4};
    }
    const NarrowRow row = {x, scatter_indices};
    if (of_token.num_splits == 0) {
      return LoadRow<kThreads>(arguments.attended + token * cols, cols, row);
    }
    return MergeSplits<kThreads, /*kSplits=*/2, float4>(arguments, layout, of_token, columns, row);
  }
};

struct Permuted {
  static constexpr bool kHasInverseRms = false;
  // The longest rows, of up to four times as many columns as others.
  static constexpr int kWarps = 16;
  static constexpr bool kIsPermuted = true;
  static constexpr int kClusterBlocks = 1;
  const float* rows;
  int cols;

  struct State {};
  static int64_t StagedBytes(const InputTransform& /*transform*/) { return 0; }

  template <int kThreads>
  __device__ State Begin(int /*num_tokens*/, uint8_t* /*staged*/) const {
    return {};
  }
  __device__ const float* RowOf(int token) const { return rows + token * cols; }
  template <int kThreads>
  __device__ RowRange Load(const State& /*state*/, int token, const uint8_t* /*staged*/, float* x,
                           const uint16_t* /*scatter_indices*/) const {
    return LoadRow<kThreads>(RowOf(token), cols, PermutedRow{x});
  }
};

// The same where blocks form clusters. Rows are so long that all SMs reading all of them would wait
// for L2; columns are read once only and need not be in shared memory.
template <int kBlocks>
struct SharedPermuted : Permuted {
  static constexpr int kClusterBlocks = kBlocks;
  using Quads = ClusterQuads<kWarps * 32, kBlocks>;
};

// Calls `use` with the kind of Permuted for a transform. Small clusters find room more easily.
template <typename Use>
auto WithPermuted(const InputTransform& transform, const Permuted& entries, const Use& use) {
  const int64_t num_positions = transform.num_k_tiles * kKTileColumns;
  if (RunsCodeOf90() && num_positions <= SharedPermuted<2>::Quads::kMaxPositions) {
    return use(SharedPermuted<2>{entries});
  }
  if (RunsCodeOf90() && num_positions <= SharedPermuted<4>::Quads::kMaxPositions) {
    return use(SharedPermuted<4>{entries});
  }
  return use(entries);
}

// Shared memory that a block may have: on devices of compute capability 9.0 two of them find room.
int64_t MaxSharedBytes(int64_t max_shared_bytes) {
  return std::min(kMaxSkinnySharedBytes, max_shared_bytes - kStaticSkinnyBytes);
}

template <typename Source>
FusedPlan PlanFor(const PackedMatrix& matrix, const InputTransform& transform, int64_t num_tokens,
                  bool is_gated, int num_sms, int64_t max_bytes) {
  const int64_t num_tiles = NumMTiles(matrix.rows);
  // K tiles of a tile are divided among warps as far as there are fewer tiles than warps.
  const int64_t num_warps = int64_t{num_sms} * Source::kWarps;
  const int max_k_warps = DivideKTiles(matrix, Source::kWarps).num_k_warps;
  int num_k_warps = 1;
  while (2 * num_k_warps <= max_k_warps && 2 * num_k_warps * num_tiles <= num_warps) {
    num_k_warps *= 2;
  }
  const int num_groups = Source::kWarps / num_k_warps;
  const int64_t groups_at_once = int64_t{num_sms} * num_groups;
  FusedPlan plan = {};
  plan.is_gated = is_gated;
  plan.log2_k_warps = std::countr_zero(static_cast<unsigned>(num_k_warps));
  plan.tiles_per_group = static_cast<int>((num_tiles + groups_at_once - 1) / groups_at_once);
  // Pairs stay together.
  if (is_gated && num_groups * plan.tiles_per_group % 2 != 0) ++plan.tiles_per_group;
  plan.rows_per_block = num_groups * plan.tiles_per_group * kMTileRows;
  plan.bit_serial_bytes = static_cast<int>(PackedScaleOffset(transform.num_k_tiles));
  plan.scales = plan.rows_per_block * static_cast<int>(num_tokens) * int{sizeof(uint32_t)};
  plan.output_places = plan.scales + plan.rows_per_block * int{sizeof(float2)};
  plan.bit_serial = plan.output_places + plan.rows_per_block * int{sizeof(uint16_t)};
  plan.x = plan.bit_serial + static_cast<int>(num_tokens) * plan.bit_serial_bytes;
  plan.scatter_indices =
      plan.x + (Source::kClusterBlocks > 1 ? 0 : static_cast<int>(InputBytes(transform)));
  plan.groups =
      plan.scatter_indices + (Source::kIsPermuted ? 0 : static_cast<int>(transform.table_bytes()));
  plan.staged = plan.groups + static_cast<int>(transform.group_bytes());
  plan.bits = plan.staged + static_cast<int>(Source::StagedBytes(transform));
  const int64_t num_k_tiles = matrix.num_k_tiles / kKTilesPerBitKTile;
  const int64_t warp_k_tiles =
      plan.tiles_per_group * ((num_k_tiles + num_k_warps - 1) / num_k_warps);
  constexpr int kBytes = Source::kWarps * kBitKTileBytes;  // of a K tile of each warp
  const int64_t room = std::max<int64_t>(0, max_bytes - plan.bits);
  plan.staged_k_tiles = static_cast<int>(std::min(warp_k_tiles, room / kBytes));
  plan.left_k_tiles = static_cast<int>(warp_k_tiles) - plan.staged_k_tiles;
  plan.shared_bytes = plan.bits + plan.staged_k_tiles * kBytes;
  return plan;
}

template <typename Source, int kTokens>
cudaError_t LaunchTokens(const ProductArguments& arguments, const FusedInput& input,
                         const void* output_indices, const Source& source, cudaStream_t stream) {
  const FusedPlan plan =
      PlanFor<Source>(arguments.matrix, input.transform, kTokens, arguments.is_gated,
                      arguments.num_sms, MaxSharedBytes(arguments.max_shared_bytes));
  // More than a third of an SM's: where there is room for three blocks, two of a kernel come to lie
  // on one while others have none.
  const int64_t shared_bytes =
      std::max<int64_t>(plan.shared_bytes, arguments.max_shared_bytes / 3 + 1);
  const cudaError_t error = AllowSharedMemory(FusedProduct<Source, kTokens>, shared_bytes);
  if (error != cudaSuccess) return error;
  const int64_t num_tiles = NumMTiles(arguments.matrix.rows);
  const int64_t tiles_per_block = plan.rows_per_block / kMTileRows;
  const int64_t num_blocks = (num_tiles + tiles_per_block - 1) / tiles_per_block;
  // Blocks past the last have no outputs, only their part of a cluster's input.
  constexpr int kClusterBlocks = Source::kClusterBlocks;
  const int64_t num_clusters = (num_blocks + kClusterBlocks - 1) / kClusterBlocks;
  return LaunchClusters(
      FusedProduct<Source, kTokens>, dim3(static_cast<unsigned>(num_clusters * kClusterBlocks)),
      kClusterBlocks, Source::kWarps * 32, static_cast<size_t>(shared_bytes), stream, arguments,
      plan, input.transform, source, static_cast<const uint16_t*>(output_indices));
}

template <typename Source>
cudaError_t Launch(const ProductArguments& arguments, const FusedInput& input,
                   const void* output_indices, const Source& source, cudaStream_t stream) {
  static_assert(kMaxFusedTokens == 2);
  return arguments.num_tokens == 1
             ? LaunchTokens<Source, 1>(arguments, input, output_indices, source, stream)
             : LaunchTokens<Source, 2>(arguments, input, output_indices, source, stream);
}

}  // namespace

bool HasNarrowIndices(const InputTransform& transform) {
  return transform.num_groups > 0 && transform.index_bytes == 2;
}

bool CanFuseProduct(const FusedInput& input, const PackedMatrix& matrix,
                    const InputTransform& transform, int64_t num_tokens, int num_sms,
                    int64_t max_shared_bytes) {
  // Offsets of bits are of 32 bits.
  const int64_t num_bytes = NumMTiles(matrix.rows) * matrix.num_k_tiles * kFoldKTileBytes;
  if (num_tokens > kMaxFusedTokens || transform.form != InputForm::kHiLoInt8 ||
      !HasNarrowIndices(transform) || num_bytes > int64_t{UINT32_MAX}) {
    return false;
  }
  // Each waits for L2, some 0.35 us; a kernel for the inputs takes 1.5 or more.
  constexpr int kMaxLeftKTiles = 4;
  const int64_t most = MaxSharedBytes(max_shared_bytes);
  const auto fits = [&]<typename Source>(const Source& /*source*/) {
    // Whether it is gated is not known yet.
    const FusedPlan plan =
        PlanFor<Source>(matrix, transform, num_tokens, /*is_gated=*/true, num_sms, most);
    return plan.shared_bytes <= most && plan.left_k_tiles <= kMaxLeftKTiles;
  };
  switch (input.kind) {
    case FusedInput::Kind::kNormalized:
      return fits(Normalized{});
    case FusedInput::Kind::kAttended:
      return input.attention.geometry.head_dim % 4 == 0 &&
             fits(Attended{{}, nullptr, PartialLayout(input.attention.geometry), 0});
    case FusedInput::Kind::kPermuted:
      // Permuted rows are read in quads.
      return transform.cols % kQuad == 0 && WithPermuted(transform, Permuted{}, fits);
    case FusedInput::Kind::kRows:
      return false;
  }
  return false;
}

cudaError_t LaunchFusedProduct(const ProductArguments& arguments, const FusedInput& input,
                               const void* output_indices, cudaStream_t stream) {
  const int cols = static_cast<int>(input.transform.cols);
  switch (input.kind) {
    case FusedInput::Kind::kNormalized:
      return Launch(arguments, input, output_indices,
                    Normalized{input.rows, input.weight, input.epsilon, cols}, stream);
    case FusedInput::Kind::kAttended:
      return Launch(arguments, input, output_indices,
                    Attended{input.attention, input.attention_tokens,
                             PartialLayout(input.attention.geometry), cols},
                    stream);
    case FusedInput::Kind::kPermuted:
      return WithPermuted(input.transform, Permuted{input.rows, cols}, [&](const auto& entries) {
        return Launch(arguments, input, output_indices, entries, stream);
      });
    case FusedInput::Kind::kRows:
      break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace ultrasketch::cuda
