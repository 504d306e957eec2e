#include "client/cli/bench_step.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "nlohmann/json.hpp"

#include "client/cli/local_model.h"
#include "client/cli/output.h"
#include "client/cli/progress.h"
#include "engine/base/status.h"
#include "engine/bench/model_presets.h"

namespace ultrasketch::cli {
namespace {

constexpr int64_t kMostTokens = 1 << 20;

}  // namespace

void StepBench::Declare(CLI::App& app) {
  app.add_option("--device", options_.device, "auto, cpu, cuda or cuda:N")
      ->capture_default_str()
      ->type_name("DEVICE");
  app.add_option("--preset", presets_,
                 absl::StrCat("Shapes, with commas between: ", absl::StrJoin(PresetNames(), ", ")))
      ->delimiter(',')
      ->capture_default_str()
      ->type_name("NAME");
  app.add_option("--codec", options_.codec, "fold or absmaxmin")
      ->capture_default_str()
      ->type_name("NAME");
  app.add_option("--bits", options_.bits_per_weight, "Bits per weight, without scales")
      ->check(NumberIn(0.01, 1.0))
      ->capture_default_str()
      ->type_name("BITS");
  app.add_option(
         "--table", options_.table,
         "Embedding and head of the compressed model: int8 (as 'compress' stores them), int4 "
         "or dense (bfloat16, as in the uncompressed one)")
      ->capture_default_str()
      ->type_name("FORM");
  DeclareKvCacheType(app, options_.kv_cache_type);
  app.add_option("--batch", batches_, "Sequences of a decoding step, with commas between")
      ->delimiter(',')
      ->check(CLI::Range(int64_t{1}, kMostTokens))
      ->capture_default_str()
      ->type_name("N");
  app.add_option("--context", context_, "Tokens of each of these sequences, the new one included")
      ->check(CLI::Range(int64_t{1}, kMostTokens))
      ->capture_default_str()
      ->type_name("N");
  app.add_option("--prompt", prompt_, "Tokens of the prompt; 0: none")
      ->check(CLI::Range(int64_t{0}, kMostTokens))
      ->capture_default_str()
      ->type_name("N");
  app.add_option("--layers", options_.num_layers, "Only this many layers; 0: all")
      ->check(AtLeast<int>(0))
      ->type_name("N");
  app.add_option("--seconds", options_.seconds, "For each measurement, at least")
      ->check(NumberIn(0.0, 60.0))
      ->capture_default_str()
      ->type_name("S");
  app.footer(
      "Decoding steps and a prompt, with random weights: medians, compressed and uncompressed\n"
      "in one run. On a CUDA device also what the uncompressed step would take with cublasLt's\n"
      "products in place of the engine's.\n"
      "Examples:\n  ultrasketch bench step --preset llama-3.1-8b --layers 8 --device cuda\n"
      "  ultrasketch bench step --batch 1,4,16 --context 4096 --prompt 0");
}

absl::Status StepBench::Run(const Environment& environment) {
  const StopFlag stop(environment.stop);
  options_.cancelled = stop.flag();
  options_.shapes = StepShapes(batches_, context_, prompt_);
  nlohmann::ordered_json json = {{"codec", options_.codec},
                                 {"bits_per_weight", options_.bits_per_weight},
                                 {"table", options_.table},
                                 {"kv_cache_type", KvCacheTypeName(options_.kv_cache_type)}};
  nlohmann::ordered_json models = nlohmann::ordered_json::array();
  std::vector<std::vector<std::string>> rows = {{"preset", "layers", "step", "dense ms",
                                                 "with cublasLt", options_.codec + " ms", "x dense",
                                                 "x cublasLt", "tokens/s"}};
  for (const std::string& preset : presets_) {
    options_.preset = preset;
    absl::StatusOr<StepBenchResult> result;
    {
      ProgressBar progress("measuring");
      options_.progress = [&](double fraction) { progress.UpdateFraction(preset, fraction); };
      result = MeasureSteps(options_);
    }
    US_RETURN_IF_ERROR(result.status());
    json["device"] = result->device;
    if (!result->cublas_error.empty()) json["cublas_error"] = result->cublas_error;
    nlohmann::ordered_json steps = nlohmann::ordered_json::array();
    for (const StepMeasurement& measurement : result->measurements) {
      const StepShape& shape = measurement.shape;
      const double ratio = measurement.dense_seconds / measurement.seconds;
      const double cublas = measurement.dense_cublas_seconds;
      const double cublas_ratio = cublas / measurement.seconds;
      const auto number = [cublas](double value) {
        return cublas > 0 ? nlohmann::ordered_json(value) : nlohmann::ordered_json();
      };
      const double rate = static_cast<double>(shape.batch * shape.num_new) / measurement.seconds;
      steps.push_back({{"step", shape.name},
                       {"sequences", shape.batch},
                       {"cached_tokens", shape.num_cached},
                       {"new_tokens", shape.num_new},
                       {"milliseconds", 1e3 * measurement.seconds},
                       {"dense_milliseconds", 1e3 * measurement.dense_seconds},
                       {"dense_cublas_milliseconds", number(1e3 * cublas)},
                       {"ratio_to_dense", ratio},
                       {"ratio_to_dense_cublas", number(cublas_ratio)},
                       {"tokens_per_second", rate}});
      rows.push_back(
          {preset, absl::StrCat(result->num_layers), shape.name,
           absl::StrFormat("%.3f", 1e3 * measurement.dense_seconds),
           cublas > 0 ? absl::StrFormat("%.3f", 1e3 * cublas) : "",
           absl::StrFormat("%.3f", 1e3 * measurement.seconds), absl::StrFormat("%.2f", ratio),
           cublas > 0 ? absl::StrFormat("%.2f", cublas_ratio) : "", absl::StrFormat("%.0f", rate)});
    }
    models.push_back({{"preset", preset},
                      {"layers", result->num_layers},
                      {"weight_bytes", result->weight_bytes},
                      {"dense_weight_bytes", result->dense_weight_bytes},
                      {"steps", std::move(steps)}});
  }
  json["models"] = std::move(models);
  if (environment.json) return WriteJson(json);
  const std::string cublas_error = json.value("cublas_error", "");
  return WriteOutput(
      absl::StrCat(FormatTable(rows), json["device"].get<std::string>(), "\n",
                   cublas_error.empty() ? "" : absl::StrCat("cublasLt: ", cublas_error, "\n")));
}

}  // namespace ultrasketch::cli
