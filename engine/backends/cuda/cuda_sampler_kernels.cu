// One block a draw. A row is read from L2 a few times: once for its maximum, once for the sum of
// its weights, three times for each selection, which is by radix: eleven bits of the logits at a
// time, counting tokens or their mass.
#include <cuda_runtime.h>

#include "engine/backends/cuda/cuda_sampler_kernels.h"

namespace ultrasketch::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
constexpr int kWeightBlock = 512;  // of engine/backends/sampling
constexpr int kLanes = 8;          // that its sums are interleaved in
constexpr int kBins = 2048;

constexpr uint32_t kInfinityKey = 0xff800000u;
constexpr uint32_t kMinusInfinityKey = 0x007fffffu;

// Orders as floats do, 0 and -0 alike, and puts NaNs outside the infinities.
__device__ inline uint32_t OrderedKey(float value) {
  const uint32_t bits = __float_as_uint(value + 0.0f);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}

// ExpNonPositive of engine/backends/sampling: no operation is fused.
__device__ inline float Exponential(float x) {
  constexpr float kLeast = -87.0f;
  constexpr float kRoundToInteger = 12582912.0f;
  const float bounded = x > kLeast ? x : kLeast;
  const float shifted = __fadd_rn(__fmul_rn(bounded, 1.44269504f), kRoundToInteger);
  const float n = __fsub_rn(shifted, kRoundToInteger);
  const float r =
      __fsub_rn(__fsub_rn(bounded, __fmul_rn(n, 0.693359375f)), __fmul_rn(n, -2.12194440e-4f));
  float power = 1.0f / 5040;
  const auto step = [&](float term) { power = __fadd_rn(__fmul_rn(power, r), term); };
  step(1.0f / 720);
  step(1.0f / 120);
  step(1.0f / 24);
  step(1.0f / 6);
  step(0.5f);
  step(1.0f);
  step(1.0f);
  const int32_t exponent = (__float_as_int(shifted) - 0x4b400000) << 23;
  return x < kLeast ? 0.0f : __int_as_float(__float_as_int(power) + exponent);
}

// The most likely tokens: those of a key above `key`, and of those of that key the ones up to
// `last_id`.
struct Cutoff {
  uint32_t key = 0;
  int32_t last_id = INT32_MAX;

  __device__ bool Keeps(float logit, int32_t id) const {
    const uint32_t other = OrderedKey(logit);
    return other > key || (other == key && id <= last_id);
  }
};

// A row and what a token's weight depends on.
struct WeightedRow {
  const float* logits;
  int32_t size;
  float maximum;
  float inverse_temperature;
  float least_weight;
  Cutoff cutoff;

  __device__ float Weight(int32_t id) const {
    const float logit = logits[id];
    const float weight = Exponential(__fmul_rn(__fsub_rn(logit, maximum), inverse_temperature));
    return weight >= least_weight && cutoff.Keeps(logit, id) ? weight : 0.0f;
  }
};

// Sums of weights in two fixed-point parts, of 2^-40 and 2^-80: exact in any order.
struct Mass {
  uint64_t high = 0;
  uint64_t low = 0;
  uint32_t count = 0;

  __device__ Mass operator+(const Mass& other) const {
    return {high + other.high, low + other.low, count + other.count};
  }
  __device__ double value() const {
    return static_cast<double>(high) * 0x1p-40 + static_cast<double>(low) * 0x1p-80;
  }
};

// How many tokens a selection takes: at least one.
struct Wanted {
  bool by_count = false;
  uint32_t count = 0;
  double mass = 0;

  __device__ bool IsReached(const Mass& taken) const {
    return by_count ? taken.count >= count : taken.count > 0 && taken.value() >= mass;
  }
};

union Workspace {
  struct {
    unsigned long long high[kBins];
    unsigned long long low[kBins];
    uint32_t count[kBins];
  } histogram;
  struct {
    uint64_t order[kMaxSelected];
    double weights[kMaxSelected];
  } selected;
  float weights[kWeightBlock];
  int32_t counts[kThreads];
};

struct BlockState {
  Workspace workspace;
  Mass warp_masses[kWarps];
  uint32_t least[kWarps];
  uint32_t most[kWarps];
  Mass before;
  uint32_t bin;
  Cutoff cutoff;
  int32_t num_selected;
  int32_t token;
  double total;
};

// The keys of the least and the largest logit, to all threads.
__device__ uint2 KeyRange(const float* logits, int32_t size, BlockState& state) {
  uint32_t least = UINT32_MAX;
  uint32_t most = 0;
  for (int32_t id = static_cast<int32_t>(threadIdx.x); id < size; id += kThreads) {
    const uint32_t key = OrderedKey(logits[id]);
    least = min(least, key);
    most = max(most, key);
  }
  least = __reduce_min_sync(0xffffffffu, least);
  most = __reduce_max_sync(0xffffffffu, most);
  __syncthreads();
  if (threadIdx.x % 32 == 0) {
    state.least[threadIdx.x / 32] = least;
    state.most[threadIdx.x / 32] = most;
  }
  __syncthreads();
  for (int warp = 0; warp < kWarps; ++warp) {
    least = min(least, state.least[warp]);
    most = max(most, state.most[warp]);
  }
  return {least, most};
}

__device__ bool IsUsable(uint2 range) {
  return range.x >= kMinusInfinityKey && range.y < kInfinityKey && range.y > kMinusInfinityKey;
}

__device__ float ValueOfKey(uint32_t key) {
  return __uint_as_float((key >> 31) != 0 ? key & 0x7fffffffu : ~key);
}

// The sum of the weights; block_sums[b] is that of block b. Interleaved in eight lanes, or one
// after the other, as the reference does with and without a limit of mass. To all threads.
__device__ double SumWeights(const WeightedRow& row, bool interleaved, double* block_sums,
                             BlockState& state) {
  const int32_t num_blocks = (row.size + kWeightBlock - 1) / kWeightBlock;
  const int thread = static_cast<int>(threadIdx.x);
  const int threads_per_block = interleaved ? kLanes : 1;
  const int lane = thread % threads_per_block;
  const int32_t rounds =
      (num_blocks + kThreads / threads_per_block - 1) / (kThreads / threads_per_block);
  for (int32_t round = 0; round < rounds; ++round) {
    const int32_t block = round * (kThreads / threads_per_block) + thread / threads_per_block;
    const int32_t begin = min(block * kWeightBlock, row.size);
    const int32_t end = min(begin + kWeightBlock, row.size);
    if (!interleaved) {
      double sum = 0;
      for (int32_t id = begin; id < end; ++id) sum += double{row.Weight(id)};
      if (block < num_blocks) block_sums[block] = sum;
      continue;
    }
    const int32_t whole = begin + (end - begin) / kLanes * kLanes;
    double lane_sum = 0;
    for (int32_t id = begin; id < whole; id += kLanes) lane_sum += double{row.Weight(id + lane)};
    double sum = 0;
    for (int32_t id = whole; id < end; ++id) sum += double{row.Weight(id)};
    for (int from = 0; from < kLanes; ++from) {
      sum += __shfl_sync(0xffffffffu, lane_sum, from, kLanes);
    }
    if (block < num_blocks && lane == 0) block_sums[block] = sum;
  }
  __syncthreads();
  if (thread == 0) {
    double total = 0;
    for (int32_t block = 0; block < num_blocks; ++block) total += block_sums[block];
    state.total = total;
  }
  __syncthreads();
  return state.total;
}

// Walks from the largest of the histogram's bins on to the one with which `wanted` is reached, or
// the last that is not empty. Leaves it in state.bin, and what is taken before it in state.before.
__device__ void FindBin(const Wanted& wanted, BlockState& state) {
  const int thread = static_cast<int>(threadIdx.x);
  const auto mass_of = [&](int bin) -> Mass {
    const auto& histogram = state.workspace.histogram;
    return {histogram.high[bin], histogram.low[bin], histogram.count[bin]};
  };
  // Warp 0 has the largest bins.
  constexpr int kBinsPerWarp = kBins / kWarps;
  const int largest = kBins - 1 - thread / 32 * kBinsPerWarp;
  Mass mass;
  for (int i = thread % 32; i < kBinsPerWarp; i += 32) mass = mass + mass_of(largest - i);
  for (int distance = 16; distance > 0; distance /= 2) {
    const Mass other = {__shfl_xor_sync(0xffffffffu, mass.high, distance),
                        __shfl_xor_sync(0xffffffffu, mass.low, distance),
                        __shfl_xor_sync(0xffffffffu, mass.count, distance)};
    mass = mass + other;
  }
  if (thread % 32 == 0) state.warp_masses[thread / 32] = mass;
  __syncthreads();
  if (thread == 0) {
    Mass before = state.before;
    int last_warp = 0;
    Mass before_last = before;
    for (int warp = 0; warp < kWarps; ++warp) {
      const Mass in_warp = state.warp_masses[warp];
      if (in_warp.count == 0) continue;
      last_warp = warp;
      before_last = before;
      before = before + in_warp;
      if (wanted.IsReached(before)) break;
    }
    before = before_last;
    int last_bin = 0;
    for (int i = 0; i < kBinsPerWarp; ++i) {
      const int bin = kBins - 1 - last_warp * kBinsPerWarp - i;
      const Mass in_bin = mass_of(bin);
      if (in_bin.count == 0) continue;
      last_bin = bin;
      before_last = before;
      before = before + in_bin;
      if (wanted.IsReached(before)) break;
    }
    state.bin = static_cast<uint32_t>(last_bin);
    state.before = before_last;
  }
  __syncthreads();
}

// The wanted most likely of the tokens with a weight (by mass) or of all (by count).
__device__ Cutoff Select(const WeightedRow& row, const Wanted& wanted, BlockState& state) {
  const int thread = static_cast<int>(threadIdx.x);
  auto& histogram = state.workspace.histogram;
  constexpr int kShifts[] = {21, 10, 0};
  constexpr int kWidths[] = {11, 11, 10};
  uint32_t prefix = 0;
  uint32_t mask = 0;
  __syncthreads();
  if (thread == 0) state.before = Mass();
  for (int pass = 0; pass < 3; ++pass) {
    for (int bin = thread; bin < kBins; bin += kThreads) {
      histogram.high[bin] = 0;
      histogram.low[bin] = 0;
      histogram.count[bin] = 0;
    }
    __syncthreads();
    const uint32_t bins_mask = (1u << kWidths[pass]) - 1;
    for (int32_t id = thread; id < row.size; id += kThreads) {
      const uint32_t key = OrderedKey(row.logits[id]);
      if ((key & mask) != prefix) continue;
      const uint32_t bin = key >> kShifts[pass] & bins_mask;
      if (!wanted.by_count) {
        const double weight = double{row.Weight(id)} * 0x1p40;
        if (!(weight > 0)) continue;
        const auto high = static_cast<unsigned long long>(weight);
        const auto low =
            static_cast<unsigned long long>((weight - static_cast<double>(high)) * 0x1p40);
        atomicAdd(&histogram.high[bin], high);
        atomicAdd(&histogram.low[bin], low);
      }
      atomicAdd(&histogram.count[bin], 1u);
    }
    __syncthreads();
    FindBin(wanted, state);
    prefix |= state.bin << kShifts[pass];
    mask |= bins_mask << kShifts[pass];
  }
  // All in the last bin have the same logit: the lowest ids are taken.
  const uint32_t num_ties = histogram.count[state.bin];
  uint32_t num_taken = num_ties;
  const Mass before = state.before;
  if (wanted.by_count) {
    num_taken = min(num_ties, wanted.count - before.count);
  } else {
    const Mass ties = {histogram.high[state.bin], histogram.low[state.bin], num_ties};
    const double each = ties.value() / num_ties;
    const double missing = wanted.mass - before.value();
    if (each > 0 && missing < ties.value()) {
      num_taken = max(1u, static_cast<uint32_t>(ceil(missing / each)));
      num_taken = min(num_taken, num_ties);
    }
  }
  Cutoff cutoff;
  cutoff.key = prefix;
  if (num_taken == num_ties) return cutoff;
  // Each thread counts in a run of ids; the first finds the run of the last one taken.
  __syncthreads();
  const int32_t run = (row.size + kThreads - 1) / kThreads;
  const int32_t begin = min(thread * run, row.size);
  const int32_t end = min(begin + run, row.size);
  int32_t count = 0;
  for (int32_t id = begin; id < end; ++id) count += OrderedKey(row.logits[id]) == prefix ? 1 : 0;
  state.workspace.counts[thread] = count;
  __syncthreads();
  if (thread == 0) {
    auto left = static_cast<int32_t>(num_taken);
    int owner = 0;
    while (state.workspace.counts[owner] < left) left -= state.workspace.counts[owner++];
    int32_t id = owner * run;
    for (;; ++id) {
      if (OrderedKey(row.logits[id]) == prefix && --left == 0) break;
    }
    state.cutoff.last_id = id;
  }
  __syncthreads();
  cutoff.last_id = state.cutoff.last_id;
  return cutoff;
}

// The tokens that the cutoff keeps, at most kMaxSelected, most likely first, as numbers that order
// so: id in the lower half. Returns how many.
__device__ int32_t SelectInOrder(const float* logits, int32_t size, const Cutoff& cutoff,
                                 BlockState& state) {
  const int thread = static_cast<int>(threadIdx.x);
  uint64_t* order = state.workspace.selected.order;
  __syncthreads();
  if (thread == 0) state.num_selected = 0;
  for (int i = thread; i < kMaxSelected; i += kThreads) order[i] = UINT64_MAX;
  __syncthreads();
  for (int32_t id = thread; id < size; id += kThreads) {
    if (!cutoff.Keeps(logits[id], id)) continue;
    order[atomicAdd(&state.num_selected, 1)] =
        uint64_t{~OrderedKey(logits[id])} << 32 | static_cast<uint32_t>(id);
  }
  __syncthreads();
  const int32_t count = state.num_selected;
  int padded = 2;
  while (padded < count) padded *= 2;
  // Bitonic.
  for (int width = 2; width <= padded; width *= 2) {
    for (int distance = width / 2; distance > 0; distance /= 2) {
      if (thread < padded) {
        const int other = thread ^ distance;
        if (other > thread) {
          const bool ascending = (thread & width) == 0;
          const uint64_t a = order[thread];
          const uint64_t b = order[other];
          if ((a > b) == ascending) {
            order[thread] = b;
            order[other] = a;
          }
        }
      }
      __syncthreads();
    }
  }
  return count;
}

// IndexAt of engine/backends/sampling, by one thread.
template <typename Weight>
__device__ int32_t IndexAt(double point, int32_t end, const Weight& weight) {
  int32_t last = 0;
  for (int32_t i = 0; i < end; ++i) {
    const double share = weight(i);
    if (share <= 0) continue;
    if (point < share) return i;
    point -= share;
    last = i;
  }
  return last;
}

__device__ int32_t DrawFromAll(const WeightedRow& row, double uniform, double total,
                               const double* block_sums, BlockState& state) {
  const int32_t num_blocks = (row.size + kWeightBlock - 1) / kWeightBlock;
  __syncthreads();
  if (threadIdx.x == 0) {
    double point = uniform * total;
    int32_t block = 0;
    int32_t last = 0;
    for (; block < num_blocks; ++block) {
      if (block_sums[block] <= 0) continue;
      last = block;
      if (point < block_sums[block]) break;
      point -= block_sums[block];
    }
    state.token = block < num_blocks ? block : last;
    state.total = point;
  }
  __syncthreads();
  const int32_t begin = state.token * kWeightBlock;
  const int32_t count = min(kWeightBlock, row.size - begin);
  float* weights = state.workspace.weights;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < count; i += kThreads) {
    weights[i] = row.Weight(begin + i);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    state.token =
        begin + IndexAt(state.total, count, [&](int32_t i) { return double{weights[i]}; });
  }
  __syncthreads();
  return state.token;
}

__device__ int32_t DrawFromMostLikely(const WeightedRow& row, const DrawRequest& request,
                                      BlockState& state) {
  Wanted wanted;
  wanted.by_count = true;
  wanted.count = static_cast<uint32_t>(request.top_k);
  const Cutoff cutoff = Select(row, wanted, state);
  const int32_t count = SelectInOrder(row.logits, row.size, cutoff, state);
  const uint64_t* order = state.workspace.selected.order;
  double* weights = state.workspace.selected.weights;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < count; i += kThreads) {
    const float logit = row.logits[static_cast<uint32_t>(order[i])];
    weights[i] =
        double{Exponential(__fmul_rn(__fsub_rn(logit, row.maximum), row.inverse_temperature))};
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    int32_t num_weighted = 0;
    double total = 0;
    while (num_weighted < count && !(weights[num_weighted] < double{row.least_weight}) &&
           weights[num_weighted] > 0) {
      total += weights[num_weighted++];
    }
    const double mass = request.top_p < 1 ? double{request.top_p} * total : total;
    double kept_mass = 0;
    int32_t kept = 0;
    while (kept < num_weighted && (kept == 0 || kept_mass < mass)) kept_mass += weights[kept++];
    const int32_t index =
        IndexAt(request.uniform * kept_mass, kept, [&](int32_t i) { return weights[i]; });
    state.token = static_cast<int32_t>(static_cast<uint32_t>(order[index]));
  }
  __syncthreads();
  return state.token;
}

// The lowest id of the largest logit.
__device__ int32_t FindFirst(const float* logits, int32_t size, uint32_t key, BlockState& state) {
  __syncthreads();
  if (threadIdx.x == 0) state.token = INT32_MAX;
  __syncthreads();
  for (int32_t id = static_cast<int32_t>(threadIdx.x); id < size; id += kThreads) {
    if (OrderedKey(logits[id]) != key) continue;
    atomicMin(&state.token, id);
    break;
  }
  __syncthreads();
  return state.token;
}

__device__ void Edit(const float* logits, int32_t size, const LogitEdit* edits, int32_t num_edits,
                     float repetition_penalty, float* edited) {
  for (int32_t id = static_cast<int32_t>(threadIdx.x); id < size; id += kThreads) {
    edited[id] = logits[id];
  }
  __syncthreads();
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < num_edits; i += kThreads) {
    const LogitEdit edit = edits[i];
    float logit = edited[edit.id];
    if (edit.has_bias != 0) logit = __fadd_rn(logit, edit.bias);
    if (edit.is_repeated != 0 && logit != -__int_as_float(0x7f800000)) {
      logit =
          logit > 0 ? __fdiv_rn(logit, repetition_penalty) : __fmul_rn(logit, repetition_penalty);
      // As the reference implementation does where penalties overflow.
      const float most = __int_as_float(0x7f7fffff);
      logit = fminf(fmaxf(logit, -most), most);
    }
    if (edit.has_penalty != 0) logit = __fsub_rn(logit, edit.penalty);
    if (edit.is_forbidden != 0) logit = -__int_as_float(0x7f800000);
    edited[edit.id] = logit;
  }
  __syncthreads();
}

__global__ void __launch_bounds__(kThreads) Draw(const __grid_constant__ DrawArguments arguments) {
  extern __shared__ __align__(16) uint8_t dynamic_shared[];
  BlockState& state = *reinterpret_cast<BlockState*>(dynamic_shared);
  auto* block_sums =
      reinterpret_cast<double*>(dynamic_shared + (sizeof(BlockState) + 15) / 16 * 16);
  const DrawRequest request = arguments.requests[blockIdx.x];
  const auto size = static_cast<int32_t>(arguments.vocab_size);
  const float* raw = arguments.logits + request.logits_row * arguments.vocab_size;
  DrawResult result = {};

  const uint2 raw_range = KeyRange(raw, size, state);
  uint2 range = raw_range;
  result.usable = IsUsable(raw_range) ? 1 : 0;
  const float* logits = raw;
  if (result.usable != 0 && request.edited_row >= 0) {
    float* edited = arguments.edited_rows + request.edited_row * arguments.vocab_size;
    Edit(raw, size, arguments.edits + request.first_edit, request.num_edits,
         request.repetition_penalty, edited);
    logits = edited;
    range = KeyRange(logits, size, state);
    result.usable = IsUsable(range) ? 1 : 0;
  }
  if (result.usable == 0) {
    if (threadIdx.x == 0) arguments.results[blockIdx.x] = result;
    return;
  }
  result.maximum = ValueOfKey(raw_range.y);

  WeightedRow row = {logits,        size, ValueOfKey(range.y), request.inverse_temperature,
                     request.min_p, {}};
  if (request.is_greedy != 0) {
    result.id = FindFirst(logits, size, range.y, state);
  } else if (request.top_k > 0) {
    result.id = DrawFromMostLikely(row, request, state);
  } else {
    double total = SumWeights(row, /*interleaved=*/true, block_sums, state);
    if (request.top_p < 1) {
      Wanted wanted;
      wanted.mass = double{request.top_p} * total;
      row.cutoff = Select(row, wanted, state);
      total = SumWeights(row, /*interleaved=*/false, block_sums, state);
    }
    result.id = DrawFromAll(row, request.uniform, total, block_sums, state);
  }
  result.logit = raw[result.id];

  if (request.wants_logprob != 0) {
    const WeightedRow raw_row = {raw, size, result.maximum, 1.0f, 0.0f, {}};
    result.total_weight = SumWeights(raw_row, /*interleaved=*/true, block_sums, state);
    if (request.num_most_likely > 0) {
      Wanted wanted;
      wanted.by_count = true;
      wanted.count = static_cast<uint32_t>(request.num_most_likely);
      const Cutoff cutoff = Select(raw_row, wanted, state);
      const int32_t count = SelectInOrder(raw, size, cutoff, state);
      for (int32_t i = static_cast<int32_t>(threadIdx.x); i < count; i += kThreads) {
        const auto id =
            static_cast<int32_t>(static_cast<uint32_t>(state.workspace.selected.order[i]));
        arguments.most_likely[request.first_most_likely + i] = {id, raw[id]};
      }
    }
  }
  if (threadIdx.x == 0) arguments.results[blockIdx.x] = result;
}

}  // namespace

cudaError_t LaunchDraws(const DrawArguments& arguments, cudaStream_t stream) {
  const int64_t num_blocks = (arguments.vocab_size + kWeightBlock - 1) / kWeightBlock;
  const auto shared_bytes = static_cast<int>((sizeof(BlockState) + 15) / 16 * 16 +
                                             static_cast<size_t>(num_blocks) * sizeof(double));
  const cudaError_t error =
      cudaFuncSetAttribute(Draw, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (error != cudaSuccess) return error;
  Draw<<<static_cast<unsigned>(arguments.num_requests), kThreads, static_cast<size_t>(shared_bytes),
         stream>>>(arguments);
  return cudaGetLastError();
}

}  // namespace ultrasketch::cuda
