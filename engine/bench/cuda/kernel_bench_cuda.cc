#include "engine/bench/cuda/kernel_bench_cuda.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"

#include "engine/base/status.h"
#include "engine/bench/cuda/cublas_product.h"
#include "engine/bench/cuda/device_timer.h"
#include "engine/bench/cuda/sketch_baselines.h"
#include "engine/codecs/absmaxmin/cuda/absmaxmin_tables.h"
#include "engine/codecs/dense/cuda/dense_product.h"
#include "engine/codecs/fold/cuda/bit_layout.h"
#include "engine/codecs/fold/cuda/fold_product.h"

namespace ultrasketch::cuda {
namespace {

constexpr int64_t kHashRows = 3;
constexpr int64_t kBucketBits = 2;

// A product with random weights of a shape, in as many copies as the timer asks for.
class Candidate {
 public:
  virtual ~Candidate() = default;
  static absl::StatusOr<std::unique_ptr<Candidate>> Create(DeviceTimer& timer, int64_t rows,
                                                           int64_t num_k_tiles,
                                                           int64_t k_tile_bytes,
                                                           LaunchProduct launch) {
    auto candidate = std::make_unique<Candidate>();
    US_RETURN_IF_ERROR(candidate->AllocateMatrix(
        timer, rows, num_k_tiles, NumMTiles(rows) * num_k_tiles * k_tile_bytes, launch));
    return candidate;
  }

  absl::StatusOr<double> Time(DeviceTimer& timer, int64_t num_tokens) {
    const int num_copies = timer.NumCopies(copy_bytes_);
    US_ASSIGN_OR_RETURN(const auto packed_input,
                        RandomMemory::Create(num_tokens * PackedInputBytes(matrix_.num_k_tiles)));
    US_ASSIGN_OR_RETURN(const auto output, RandomMemory::Create(num_tokens * matrix_.rows * 4));
    return timer.Time(num_copies, [&](int copy) {
      ProductArguments arguments;
      arguments.matrix = matrix_;
      arguments.matrix.tiles = tiles_->At(copy * copy_bytes_);
      arguments.packed_input = packed_input->At();
      arguments.num_tokens = num_tokens;
      arguments.y = output->At<float>();
      arguments.num_sms = timer.properties().multiProcessorCount;
      arguments.max_shared_bytes = static_cast<int>(timer.properties().sharedMemPerBlockOptin);
      return CheckCuda(launch_(arguments, timer.stream()), "product");
    });
  }

  // Weights once, inputs and outputs of each token.
  double TouchedBytes(int64_t num_tokens) const {
    return static_cast<double>(
        weight_bytes() + num_tokens * (PackedInputBytes(matrix_.num_k_tiles) + matrix_.rows * 4));
  }

 protected:
  virtual int64_t weight_bytes() const { return copy_bytes_ + matrix_.rows * 4; }

  absl::Status AllocateMatrix(DeviceTimer& timer, int64_t rows, int64_t num_k_tiles,
                              int64_t copy_bytes, LaunchProduct launch) {
    launch_ = launch;
    copy_bytes_ = copy_bytes;
    US_ASSIGN_OR_RETURN(tiles_, RandomMemory::Create(copy_bytes * timer.NumCopies(copy_bytes)));
    US_ASSIGN_OR_RETURN(scales_, RandomMemory::Create(rows * 4));
    matrix_.tiles = tiles_->At();
    matrix_.row_scales = scales_->At<float>();
    matrix_.rows = rows;
    matrix_.num_k_tiles = num_k_tiles;
    return absl::OkStatus();
  }

  PackedMatrix matrix_;
  LaunchProduct launch_ = nullptr;
  int64_t copy_bytes_ = 0;
  std::unique_ptr<RandomMemory> tiles_;
  std::unique_ptr<RandomMemory> scales_;
};

// A sketch in all the forms that are compared: packed, and as a framework would hold it.
class SketchCandidate final : public Candidate {
 public:
  static absl::StatusOr<std::unique_ptr<SketchCandidate>> Create(DeviceTimer& timer,
                                                                 const KernelShape& shape,
                                                                 double bits) {
    const int64_t buckets = std::max<int64_t>(
        static_cast<int64_t>(static_cast<double>(shape.cols) * bits / (kHashRows * kBucketBits)),
        1);
    auto candidate = std::make_unique<SketchCandidate>(shape, buckets);
    US_RETURN_IF_ERROR(candidate->Allocate(timer));
    return candidate;
  }

  SketchCandidate(const KernelShape& shape, int64_t buckets)
      : layout_(1, shape.site, {{shape.cols, buckets, kHashRows, kBucketBits, 0}}, {}),
        tables_(MakeAbsMaxMinTables(layout_)),
        shape_(shape),
        buckets_(buckets) {}

  absl::StatusOr<double> TimeWholeDecode(DeviceTimer& timer, const CublasProduct& dense) {
    US_ASSIGN_OR_RETURN(const auto whole, RandomMemory::Create(shape_.rows * matrix_.num_k_tiles *
                                                               kKTileColumns * 2));
    return timer.Time(timer.NumCopies(copy_bytes_), [&](int copy) -> absl::Status {
      PackedMatrix matrix = matrix_;
      matrix.tiles = tiles_->At(copy * copy_bytes_);
      US_RETURN_IF_ERROR(CheckCuda(
          LaunchWholeDecode(matrix, whole->At<__nv_bfloat16>(), timer.stream()), "decoding"));
      return dense.Launch(whole->At(), timer.stream());
    });
  }

  absl::StatusOr<double> TimeNaive(DeviceTimer& timer, const CublasProduct& dense) {
    const int64_t value_bytes = kHashRows * shape_.rows * buckets_ * 2;
    const int64_t matrix_bytes = shape_.rows * shape_.cols * 2;
    const int num_copies = timer.NumCopies(value_bytes);
    US_ASSIGN_OR_RETURN(const auto values, RandomMemory::Create(value_bytes * num_copies));
    US_ASSIGN_OR_RETURN(const auto indices, RandomMemory::Create(kHashRows * shape_.cols * 8));
    US_ASSIGN_OR_RETURN(const auto scales, RandomMemory::Create(shape_.rows * 2));
    US_ASSIGN_OR_RETURN(const auto matrices, RandomMemory::Create(5 * matrix_bytes));
    std::vector<int64_t> columns;
    for (int64_t hash_row = 0; hash_row < kHashRows; ++hash_row) {
      for (const int32_t bucket : layout_.BucketsOf(0, hash_row)) {
        columns.push_back(bucket - hash_row * buckets_);
      }
    }
    US_RETURN_IF_ERROR(indices->Write(columns.data(), kHashRows * shape_.cols * 8));
    NaiveSketch sketch;
    sketch.rows = shape_.rows;
    sketch.cols = shape_.cols;
    sketch.hash_rows = kHashRows;
    sketch.buckets = buckets_;
    sketch.indices = indices->At<int64_t>();
    sketch.scales = scales->At<__nv_bfloat16>();
    sketch.best = matrices->At<__nv_bfloat16>();
    sketch.gathered = matrices->At<__nv_bfloat16>(matrix_bytes);
    sketch.magnitudes[0] = matrices->At<__nv_bfloat16>(2 * matrix_bytes);
    sketch.magnitudes[1] = matrices->At<__nv_bfloat16>(3 * matrix_bytes);
    sketch.larger = matrices->At<bool>(4 * matrix_bytes);
    return timer.Time(num_copies, [&](int copy) -> absl::Status {
      sketch.values = values->At<__nv_bfloat16>(copy * value_bytes);
      US_RETURN_IF_ERROR(CheckCuda(LaunchNaiveDecode(sketch, timer.stream()), "naive decoding"));
      return dense.Launch(sketch.best, timer.stream());
    });
  }

 private:
  int64_t weight_bytes() const override {
    return Candidate::weight_bytes() + static_cast<int64_t>(tables_.entries.size()) * 2;
  }

  absl::Status Allocate(DeviceTimer& timer) {
    const int64_t num_blocks = (shape_.rows + kBucketBlockRows - 1) / kBucketBlockRows;
    US_RETURN_IF_ERROR(AllocateMatrix(timer, shape_.rows, tables_.num_k_tiles,
                                      num_blocks * tables_.words_per_block * 4,
                                      LaunchAbsMaxMinProduct));
    const auto entry_bytes = static_cast<int64_t>(tables_.entries.size() * sizeof(uint16_t));
    US_ASSIGN_OR_RETURN(entries_, RandomMemory::Create(entry_bytes));
    US_RETURN_IF_ERROR(entries_->Write(tables_.entries.data(), entry_bytes));
    const auto part_bytes = static_cast<int64_t>(tables_.parts.size() * sizeof(BucketPart));
    US_ASSIGN_OR_RETURN(parts_, RandomMemory::Create(part_bytes));
    US_RETURN_IF_ERROR(parts_->Write(tables_.parts.data(), part_bytes));
    matrix_.buckets = {parts_->At(), entries_->At<uint16_t>(),
                       static_cast<int>(tables_.parts.size()), tables_.entry_words,
                       tables_.words_per_block};
    return absl::OkStatus();
  }

  AbsMaxMinLayout layout_;
  AbsMaxMinTables tables_;
  KernelShape shape_;
  int64_t buckets_;
  std::unique_ptr<RandomMemory> entries_;
  std::unique_ptr<RandomMemory> parts_;
};

absl::StatusOr<double> MeasureCopy(DeviceTimer& timer) {
  constexpr int64_t kBytes = int64_t{1} << 30;
  US_ASSIGN_OR_RETURN(const auto from, RandomMemory::Create(kBytes));
  US_ASSIGN_OR_RETURN(const auto to, RandomMemory::Create(kBytes));
  US_ASSIGN_OR_RETURN(const double microseconds, timer.Time(1, [&](int) {
    return CheckCuda(
        cudaMemcpyAsync(to->At(), from->At(), kBytes, cudaMemcpyDeviceToDevice, timer.stream()),
        "cudaMemcpyAsync");
  }));
  return 2e6 * kBytes / microseconds;
}

absl::StatusOr<double> MeasureMatrixRate(DeviceTimer& timer) {
  constexpr int64_t kSize = 8192;
  US_ASSIGN_OR_RETURN(const auto weights, RandomMemory::Create(2 * kSize * kSize * 2));
  US_ASSIGN_OR_RETURN(const auto product,
                      CublasProduct::Create(timer, kSize, kSize, kSize, weights->At(), 2));
  return 2e6 * kSize * kSize * kSize / product->microseconds();
}

// Measures one shape for all numbers of tokens.
class ShapeBench {
 public:
  ShapeBench(DeviceTimer& timer, const KernelBenchOptions& options, const KernelShape& shape)
      : timer_(timer), options_(options), shape_(shape) {}

  absl::Status Prepare() {
    US_ASSIGN_OR_RETURN(sketch_, SketchCandidate::Create(timer_, shape_, options_.bits_per_weight));
    candidate_ = sketch_.get();
    if (options_.codec == "fold") {
      US_ASSIGN_OR_RETURN(
          fold_, Candidate::Create(timer_, shape_.rows,
                                   FoldKTiles(std::llround(static_cast<double>(shape_.cols) *
                                                           options_.bits_per_weight)),
                                   kFoldKTileBytes, LaunchFoldProduct));
      candidate_ = fold_.get();
    }
    US_ASSIGN_OR_RETURN(engine_dense_,
                        Candidate::Create(timer_, shape_.rows, NumKTiles(shape_.cols),
                                          kDenseKTileBytes, LaunchDenseProduct));
    dense_bytes_ = shape_.rows * shape_.cols * 2;
    US_ASSIGN_OR_RETURN(dense_weights_,
                        RandomMemory::Create(dense_bytes_ * timer_.NumCopies(dense_bytes_)));
    return absl::OkStatus();
  }

  absl::StatusOr<KernelMeasurement> Measure(int64_t num_tokens) {
    KernelMeasurement result;
    result.site = shape_.site;
    result.num_tokens = num_tokens;
    US_ASSIGN_OR_RETURN(result.microseconds, candidate_->Time(timer_, num_tokens));
    US_ASSIGN_OR_RETURN(const auto dense, CublasProduct::Create(timer_, shape_.rows, shape_.cols,
                                                                num_tokens, dense_weights_->At(),
                                                                timer_.NumCopies(dense_bytes_)));
    result.dense_microseconds = dense->microseconds();
    US_ASSIGN_OR_RETURN(result.engine_dense_microseconds, engine_dense_->Time(timer_, num_tokens));
    US_ASSIGN_OR_RETURN(result.naive_microseconds, sketch_->TimeNaive(timer_, *dense));
    US_ASSIGN_OR_RETURN(result.decode_microseconds, sketch_->TimeWholeDecode(timer_, *dense));
    result.bytes = candidate_->TouchedBytes(num_tokens);
    result.operations = 2.0 * static_cast<double>(shape_.rows * shape_.cols * num_tokens);
    return result;
  }

 private:
  DeviceTimer& timer_;
  const KernelBenchOptions& options_;
  const KernelShape& shape_;
  std::unique_ptr<SketchCandidate> sketch_;
  std::unique_ptr<Candidate> fold_;
  std::unique_ptr<Candidate> engine_dense_;
  Candidate* candidate_ = nullptr;
  int64_t dense_bytes_ = 0;
  std::unique_ptr<RandomMemory> dense_weights_;
};

}  // namespace

absl::StatusOr<KernelBenchResult> MeasureKernels(int ordinal, const KernelBenchOptions& options) {
  if (options.codec != "fold" && options.codec != "absmaxmin") {
    return absl::InvalidArgumentError(
        absl::StrCat("codec: expected fold or absmaxmin, found ", Quoted(options.codec)));
  }
  US_ASSIGN_OR_RETURN(const auto timer, DeviceTimer::Create(ordinal, options.seconds));
  KernelBenchResult result;
  result.device = timer->properties().name;
  US_ASSIGN_OR_RETURN(result.bytes_per_second, MeasureCopy(*timer));
  US_ASSIGN_OR_RETURN(result.operations_per_second, MeasureMatrixRate(*timer));
  const size_t num_measurements = options.shapes.size() * options.token_counts.size();
  for (const KernelShape& shape : options.shapes) {
    ShapeBench bench(*timer, options, shape);
    if (const absl::Status status = bench.Prepare(); !status.ok()) {
      return Annotate(status, shape.site);
    }
    for (const int64_t num_tokens : options.token_counts) {
      if (options.cancelled != nullptr && options.cancelled->load()) {
        return absl::CancelledError("interrupted");
      }
      absl::StatusOr<KernelMeasurement> measurement = bench.Measure(num_tokens);
      if (!measurement.ok()) {
        return Annotate(measurement.status(),
                        absl::StrCat(shape.site, " with ", num_tokens, " tokens"));
      }
      result.measurements.push_back(*std::move(measurement));
      if (options.progress) {
        options.progress(static_cast<double>(result.measurements.size()) /
                         static_cast<double>(num_measurements));
      }
    }
  }
  return result;
}

}  // namespace ultrasketch::cuda
