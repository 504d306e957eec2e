#include "client/cli/bench_kernel.h"

#include <algorithm>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "nlohmann/json.hpp"

#include "client/cli/local_model.h"
#include "client/cli/output.h"
#include "client/cli/progress.h"
#include "engine/backends/cuda/cuda_plugin.h"
#include "engine/base/status.h"
#include "engine/bench/kernel_bench_cpu.h"
#include "engine/bench/model_presets.h"
#include "engine/codecs/grouped/grouped_table.h"

namespace ultrasketch::cli {
namespace {

// All sites of a layer together: the times add up.
KernelMeasurement Total(absl::Span<const KernelMeasurement> measurements, int64_t num_tokens) {
  KernelMeasurement total;
  total.site = "all sites";
  total.num_tokens = num_tokens;
  for (const KernelMeasurement& measurement : measurements) {
    if (measurement.num_tokens != num_tokens) continue;
    total.microseconds += measurement.microseconds;
    total.dense_microseconds += measurement.dense_microseconds;
    total.engine_dense_microseconds += measurement.engine_dense_microseconds;
    total.naive_microseconds += measurement.naive_microseconds;
    total.decode_microseconds += measurement.decode_microseconds;
    total.bytes += measurement.bytes;
    total.operations += measurement.operations;
  }
  return total;
}

nlohmann::ordered_json ToJson(const std::string& preset, const KernelMeasurement& measurement,
                              const KernelBenchResult& result) {
  const double seconds = measurement.microseconds * 1e-6;
  return {
      {"preset", preset},
      {"site", measurement.site},
      {"tokens", measurement.num_tokens},
      {"microseconds", measurement.microseconds},
      {"cublas_bf16_microseconds", measurement.dense_microseconds},
      {"engine_dense_microseconds", measurement.engine_dense_microseconds},
      {"naive_sketch_microseconds", measurement.naive_microseconds},
      {"decode_then_cublas_microseconds", measurement.decode_microseconds},
      {"ratio_to_cublas", measurement.dense_microseconds / measurement.microseconds},
      {"ratio_to_naive_sketch", measurement.naive_microseconds / measurement.microseconds},
      {"ratio_to_decode_then_cublas", measurement.decode_microseconds / measurement.microseconds},
      {"terabytes_per_second", measurement.bytes / seconds * 1e-12},
      {"teraflops_per_second", measurement.operations / seconds * 1e-12},
      {"fraction_of_copy_bandwidth", measurement.bytes / seconds / result.bytes_per_second},
      {"fraction_of_matrix_rate", measurement.operations / seconds / result.operations_per_second}};
}

std::vector<std::string> ToRow(const std::string& preset, const KernelMeasurement& measurement,
                               const KernelBenchResult& result) {
  const double seconds = measurement.microseconds * 1e-6;
  return {preset,
          measurement.site,
          absl::StrCat(measurement.num_tokens),
          absl::StrFormat("%.2f", measurement.microseconds),
          absl::StrFormat("%.2f", measurement.dense_microseconds / measurement.microseconds),
          absl::StrFormat("%.1f", measurement.naive_microseconds / measurement.microseconds),
          absl::StrFormat("%.2f", measurement.decode_microseconds / measurement.microseconds),
          absl::StrFormat("%.3f", measurement.bytes / seconds * 1e-12),
          absl::StrFormat("%.1f", measurement.operations / seconds * 1e-12),
          absl::StrFormat("%.0f%%", 100 * measurement.bytes / seconds / result.bytes_per_second),
          absl::StrFormat("%.0f%%",
                          100 * measurement.operations / seconds / result.operations_per_second)};
}

}  // namespace

void KernelBench::Declare(CLI::App& app) {
  app.add_option("--device", device_, "cpu, cuda or cuda:N")
      ->capture_default_str()
      ->type_name("DEVICE");
  app.add_option("--preset", presets_,
                 absl::StrCat("Shapes, with commas between: ", absl::StrJoin(PresetNames(), ", ")))
      ->delimiter(',')
      ->capture_default_str()
      ->type_name("NAME");
  app.add_option("--codec", options_.codec,
                 "fold or absmaxmin; on a CPU also int8 or int4, of the output head")
      ->capture_default_str()
      ->type_name("NAME");
  app.add_option("--bits", options_.bits_per_weight, "Bits per weight, without scales")
      ->check(NumberIn(0.01, 2.0))
      ->capture_default_str()
      ->type_name("BITS");
  app.add_option("--tokens", options_.token_counts, "Tokens at once, with commas between")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str()
      ->type_name("N");
  app.add_option("--threads", num_threads_, "CPU threads; 0: all")
      ->check(AtLeast<int>(0))
      ->type_name("N");
  app.add_option("--seconds", options_.seconds, "For each measurement, at least")
      ->check(NumberIn(0.0, 60.0))
      ->capture_default_str()
      ->type_name("S");
  app.footer(
      "Microseconds are medians; weights rotate through more memory than the caches hold. On a\n"
      "CUDA device by its events, compared with cublasLt's bfloat16 product, with the same sketch\n"
      "decoded by an operator at a time before it, and by one kernel before it. On a CPU with the\n"
      "preparation of inputs, compared with the engine's product of bfloat16 weights.\n"
      "Examples:\n"
      "  ultrasketch bench kernel --preset llama-3.2-1b --codec absmaxmin --tokens 1,64\n"
      "  ultrasketch bench kernel --device cpu --preset llama-3.2-1b --tokens 1,16");
}

absl::Status KernelBench::Run(const Environment& environment) {
  if (device_ == "cpu") return RunOnCpu(environment);
  const std::optional<int> ordinal = CudaOrdinal(device_);
  if (!ordinal.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("device ", Quoted(device_), ": expected \"cpu\", \"cuda\" or \"cuda:N\""));
  }
  return RunOnCuda(*ordinal, environment);
}

absl::Status KernelBench::RunOnCpu(const Environment& environment) {
  const StopFlag stop(environment.stop);
  options_.cancelled = stop.flag();
  nlohmann::ordered_json json = {{"codec", options_.codec},
                                 {"bits_per_weight", options_.bits_per_weight}};
  nlohmann::ordered_json measurements = nlohmann::ordered_json::array();
  std::vector<std::vector<std::string>> rows = {
      {"preset", "matrix", "tokens", "us", "least us", "x bf16", "GB/s", "of read"}};
  for (const std::string& preset : presets_) {
    if (GroupedTypeFromName(options_.codec).has_value()) {
      US_ASSIGN_OR_RETURN(const KernelShape head, PresetHeadShape(preset));
      options_.shapes = {head};
    } else {
      US_ASSIGN_OR_RETURN(options_.shapes, PresetShapes(preset));
    }
    absl::StatusOr<CpuKernelBenchResult> result;
    {
      ProgressBar progress("measuring");
      options_.progress = [&](double fraction) { progress.UpdateFraction(preset, fraction); };
      result = MeasureCpuKernels(options_, num_threads_);
    }
    US_RETURN_IF_ERROR(result.status());
    json["device"] = result->device;
    json["threads"] = result->num_threads;
    json["read_gigabytes_per_second"] = result->bytes_per_second * 1e-9;
    for (const int64_t num_tokens : options_.token_counts) {
      CpuKernelMeasurement total;
      total.site = "all sites";
      total.num_tokens = num_tokens;
      std::vector<CpuKernelMeasurement> of_count;
      for (const CpuKernelMeasurement& measurement : result->measurements) {
        if (measurement.num_tokens != num_tokens) continue;
        of_count.push_back(measurement);
        total.microseconds += measurement.microseconds;
        total.least_microseconds += measurement.least_microseconds;
        total.dense_microseconds += measurement.dense_microseconds;
        total.least_dense_microseconds += measurement.least_dense_microseconds;
        total.bytes += measurement.bytes;
      }
      if (of_count.size() > 1) of_count.push_back(total);
      for (const CpuKernelMeasurement& measurement : of_count) {
        const double rate = measurement.bytes / measurement.microseconds * 1e6;
        const double ratio = measurement.dense_microseconds / measurement.microseconds;
        measurements.push_back({{"preset", preset},
                                {"site", measurement.site},
                                {"tokens", num_tokens},
                                {"microseconds", measurement.microseconds},
                                {"least_microseconds", measurement.least_microseconds},
                                {"dense_microseconds", measurement.dense_microseconds},
                                {"least_dense_microseconds", measurement.least_dense_microseconds},
                                {"ratio_to_dense", ratio},
                                {"gigabytes_per_second", rate * 1e-9},
                                {"fraction_of_read_bandwidth", rate / result->bytes_per_second}});
        rows.push_back({preset, measurement.site, absl::StrCat(num_tokens),
                        absl::StrFormat("%.1f", measurement.microseconds),
                        absl::StrFormat("%.1f", measurement.least_microseconds),
                        absl::StrFormat("%.2f", ratio), absl::StrFormat("%.2f", rate * 1e-9),
                        absl::StrFormat("%.0f%%", 100 * rate / result->bytes_per_second)});
      }
    }
  }
  json["measurements"] = std::move(measurements);
  if (environment.json) return WriteJson(json);
  return WriteOutput(absl::StrFormat("%s\n%s, reads %.1f GB/s\n", FormatTable(rows),
                                     json["device"].get<std::string>(),
                                     json["read_gigabytes_per_second"].get<double>()));
}

absl::Status KernelBench::RunOnCuda(int ordinal, const Environment& environment) {
  const StopFlag stop(environment.stop);
  options_.cancelled = stop.flag();
  nlohmann::ordered_json json = {{"codec", options_.codec},
                                 {"bits_per_weight", options_.bits_per_weight}};
  nlohmann::ordered_json measurements = nlohmann::ordered_json::array();
  std::vector<std::vector<std::string>> rows = {{"preset", "site", "tokens", "us", "x cublasLt",
                                                 "x naive", "x decode", "TB/s", "TFLOP/s",
                                                 "of copy", "of matrix"}};
  for (const std::string& preset : presets_) {
    US_ASSIGN_OR_RETURN(options_.shapes, PresetShapes(preset));
    absl::StatusOr<KernelBenchResult> result;
    {
      ProgressBar progress("measuring");
      options_.progress = [&](double fraction) { progress.UpdateFraction(preset, fraction); };
      result = MeasureCudaKernels(ordinal, options_);
    }
    US_RETURN_IF_ERROR(result.status());
    json["device"] = result->device;
    json["copy_terabytes_per_second"] = result->bytes_per_second * 1e-12;
    json["matrix_teraflops_per_second"] = result->operations_per_second * 1e-12;
    const auto add = [&](const KernelMeasurement& measurement) {
      measurements.push_back(ToJson(preset, measurement, *result));
      rows.push_back(ToRow(preset, measurement, *result));
    };
    for (const int64_t num_tokens : options_.token_counts) {
      for (const KernelMeasurement& measurement : result->measurements) {
        if (measurement.num_tokens == num_tokens) add(measurement);
      }
      add(Total(result->measurements, num_tokens));
    }
  }
  json["measurements"] = std::move(measurements);
  if (environment.json) return WriteJson(json);
  return WriteOutput(absl::StrFormat("%s\n%s, copy %.2f TB/s, bfloat16 products %.0f TFLOP/s\n",
                                     FormatTable(rows), json["device"].get<std::string>(),
                                     json["copy_terabytes_per_second"].get<double>(),
                                     json["matrix_teraflops_per_second"].get<double>()));
}

}  // namespace ultrasketch::cli
