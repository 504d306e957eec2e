#include "engine/format/recorded_evaluation.h"

#include <cmath>
#include <filesystem>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/format/json.h"
#include "engine/format/model_config.h"

namespace ultrasketch {
namespace {

constexpr char kPerplexity[] = "perplexity";
constexpr char kDensePerplexity[] = "dense_perplexity";
constexpr char kTokens[] = "tokens";
constexpr char kContext[] = "context";

bool IsPerplexity(double value) { return std::isfinite(value) && value >= 1; }

absl::Status Unexpected(const Checkpoint& checkpoint, const std::string& key, const char* expected,
                        const nlohmann::json* found) {
  return absl::DataLossError(absl::StrCat(
      checkpoint.folder(), "/config.json: quantization_config.", kEvaluationKey,
      key.empty() ? "" : ".", key, ": expected ", expected, ", found ", DescribeJson(found)));
}

}  // namespace

absl::StatusOr<std::optional<RecordedEvaluation>> ReadRecordedEvaluation(
    const Checkpoint& checkpoint) {
  const nlohmann::json* record =
      FindMember(checkpoint.config().quantization_config, kEvaluationKey);
  if (record == nullptr) return std::nullopt;
  if (!record->is_object()) return Unexpected(checkpoint, "", "an object", record);

  RecordedEvaluation evaluation;
  const auto read_perplexity = [&](const char* key, double& out) {
    const nlohmann::json* value = FindMember(*record, key);
    if (value == nullptr || !value->is_number() || !IsPerplexity(value->get<double>())) {
      return Unexpected(checkpoint, key, "a number of at least 1", value);
    }
    out = value->get<double>();
    return absl::OkStatus();
  };
  const auto read_count = [&](const char* key, int64_t& out) {
    const nlohmann::json* value = FindMember(*record, key);
    if (value == nullptr || !value->is_number_integer() || value->get<int64_t>() <= 0) {
      return Unexpected(checkpoint, key, "a positive integer", value);
    }
    out = value->get<int64_t>();
    return absl::OkStatus();
  };
  US_RETURN_IF_ERROR(read_perplexity(kPerplexity, evaluation.perplexity));
  US_RETURN_IF_ERROR(read_perplexity(kDensePerplexity, evaluation.dense_perplexity));
  US_RETURN_IF_ERROR(read_count(kTokens, evaluation.tokens));
  US_RETURN_IF_ERROR(read_count(kContext, evaluation.context_tokens));
  return evaluation;
}

absl::Status RecordEvaluation(const std::string& folder, const RecordedEvaluation& evaluation) {
  if (!IsPerplexity(evaluation.perplexity) || !IsPerplexity(evaluation.dense_perplexity) ||
      evaluation.tokens <= 0 || evaluation.context_tokens <= 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("expected finite perplexities of at least 1, found ", evaluation.perplexity,
                     " and ", evaluation.dense_perplexity, " over ", evaluation.tokens, " tokens"));
  }
  const std::string path = (std::filesystem::path(folder) / "config.json").string();
  US_ASSIGN_OR_RETURN(nlohmann::json config, ReadJsonFile(path));
  if (FindMember(config, kQuantizationKey) == nullptr ||
      !config[std::string(kQuantizationKey)].is_object()) {
    return absl::FailedPreconditionError(absl::StrCat(
        path, ": expected a compressed model, found no ", std::string(kQuantizationKey)));
  }
  config[std::string(kQuantizationKey)][kEvaluationKey] = {
      {kPerplexity, evaluation.perplexity},
      {kDensePerplexity, evaluation.dense_perplexity},
      {kTokens, evaluation.tokens},
      {kContext, evaluation.context_tokens}};
  return WriteFileAtomically(path, config.dump(2) + "\n");
}

}  // namespace ultrasketch
