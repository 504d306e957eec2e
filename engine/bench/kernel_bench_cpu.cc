#include "engine/bench/kernel_bench_cpu.h"

#include <algorithm>
#include <chrono>
#include <memory>

#include "absl/strings/str_cat.h"

#include "engine/backends/backend.h"
#include "engine/base/status.h"
#include "engine/base/thread_pool.h"
#include "engine/bench/model_presets.h"
#include "engine/bench/random_site.h"
#include "engine/bench/step_parts.h"
#include "engine/format/model_config.h"
#include "engine/models/vocabulary_tables.h"

namespace ultrasketch {
namespace {

// More than the last cache of a machine of this size holds.
constexpr int64_t kRotatedBytes = 96 << 20;
constexpr int64_t kMaxCopies = 512;

class Stopwatch {
 public:
  double Seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

// Of reading words in order.
double MeasureBandwidth(ThreadPool& pool) {
  const std::vector<uint64_t> words = RandomWords(128 << 20, 1);
  const auto num_words = static_cast<int64_t>(words.size());
  std::vector<uint64_t> sums(static_cast<size_t>(pool.num_threads()));
  double least = 0;
  for (int i = 0; i < 8; ++i) {
    const Stopwatch stopwatch;
    pool.ParallelFor(num_words, 8, [&](int64_t begin, int64_t end, int thread) {
      uint64_t parts[8] = {};
      for (int64_t word = begin; word + 8 <= end; word += 8) {
        for (int64_t part = 0; part < 8; ++part) {
          parts[part] += words[static_cast<size_t>(word + part)];
        }
      }
      for (const uint64_t part : parts) sums[static_cast<size_t>(thread)] += part;
    });
    const double seconds = stopwatch.Seconds();
    if (i == 0 || seconds < least) least = seconds;
  }
  // So that the sums are needed.
  const bool is_zero = std::all_of(sums.begin(), sums.end(), [](uint64_t sum) { return sum == 0; });
  return is_zero ? 0 : static_cast<double>(num_words) * sizeof(uint64_t) / least;
}

// Matrices of one shape and form.
class RotatedSites {
 public:
  RotatedSites(const KernelShape& shape, std::string_view codec, double bits_per_weight) {
    LinearSite site;
    site.name = "model.layers.0." + shape.site;
    site.rows = shape.rows;
    site.cols = shape.cols;
    site.members = {{site.name, shape.rows, false}};
    int64_t num_bytes = 0;
    while (num_bytes < kRotatedBytes && static_cast<int64_t>(sites_.size()) < kMaxCopies) {
      sites_.push_back(std::make_unique<RandomSite>(site, codec, bits_per_weight));
      packed_.push_back(sites_.back()->linear().PackForCpu());
      num_bytes += sites_.back()->linear().stored_bytes();
    }
  }

  int64_t bytes() const { return sites_.front()->linear().stored_bytes(); }

  // The sorted seconds of calls.
  std::vector<double> Time(int64_t num_tokens, double least_seconds, ThreadPool& pool) {
    const CpuLinear& first = *packed_.front();
    const auto cols = static_cast<size_t>(first.cols());
    std::vector<float> x(static_cast<size_t>(num_tokens) * cols);
    for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i * 7919 % 1000) - 500.0f;
    std::vector<float> prepared(static_cast<size_t>(num_tokens * first.prepared_width()));
    std::vector<float> y(static_cast<size_t>(num_tokens * first.rows()));
    std::vector<double> seconds;
    const Stopwatch whole;
    while (seconds.size() < 5 || whole.Seconds() < least_seconds) {
      const CpuLinear& linear = *packed_[next_++ % packed_.size()];
      const Stopwatch stopwatch;
      pool.ParallelFor(num_tokens, 1, [&](int64_t begin, int64_t end, int) {
        for (int64_t token = begin; token < end; ++token) {
          linear.PrepareInput(x.data() + static_cast<size_t>(token) * cols,
                              prepared.data() + token * linear.prepared_width());
        }
      });
      linear.Multiply(prepared.data(), num_tokens, false, y.data(), pool);
      seconds.push_back(stopwatch.Seconds());
    }
    std::sort(seconds.begin(), seconds.end());
    return seconds;
  }

 private:
  std::vector<std::unique_ptr<RandomSite>> sites_;
  std::vector<std::unique_ptr<CpuLinear>> packed_;  // of sites_, which they refer to
  size_t next_ = 0;
};

double Median(const std::vector<double>& sorted) { return sorted[sorted.size() / 2]; }

}  // namespace

absl::StatusOr<KernelShape> PresetHeadShape(std::string_view preset) {
  US_ASSIGN_OR_RETURN(const nlohmann::ordered_json json, PresetConfig(preset));
  US_ASSIGN_OR_RETURN(const ModelConfig config, ParseModelConfig(nlohmann::json(json), "preset"));
  const LinearSite site = EmbeddingSite(config);
  return KernelShape{"output_head", site.rows, site.cols};
}

absl::StatusOr<CpuKernelBenchResult> MeasureCpuKernels(const KernelBenchOptions& options,
                                                       int num_threads) {
  const std::vector<std::string_view> codecs = {"fold", "absmaxmin", "int8", "int4"};
  if (std::find(codecs.begin(), codecs.end(), options.codec) == codecs.end()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "codec: expected fold, absmaxmin, int8 or int4, found ", Quoted(options.codec)));
  }
  US_ASSIGN_OR_RETURN(const std::shared_ptr<Backend> backend, CreateBackend("cpu", {num_threads}));
  ThreadPool pool(num_threads);
  CpuKernelBenchResult result;
  result.device = backend->description();
  result.num_threads = pool.num_threads();
  result.bytes_per_second = MeasureBandwidth(pool);
  double done = 0;
  for (const KernelShape& shape : options.shapes) {
    RotatedSites compressed(shape, options.codec, options.bits_per_weight);
    RotatedSites dense(shape, "dense", 16);
    for (const int64_t num_tokens : options.token_counts) {
      if (options.cancelled != nullptr && options.cancelled->load()) {
        return absl::CancelledError("interrupted");
      }
      const std::vector<double> seconds = compressed.Time(num_tokens, options.seconds, pool);
      const std::vector<double> dense_seconds = dense.Time(num_tokens, options.seconds, pool);
      result.measurements.push_back({shape.site, num_tokens, 1e6 * Median(seconds),
                                     1e6 * seconds.front(), 1e6 * Median(dense_seconds),
                                     1e6 * dense_seconds.front(),
                                     static_cast<double>(compressed.bytes())});
      done += 1.0 / static_cast<double>(options.shapes.size() * options.token_counts.size());
      if (options.progress) options.progress(done);
    }
  }
  return result;
}

}  // namespace ultrasketch
