#include "engine/finetune/training_state.h"

#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "engine/base/status.h"
#include "engine/format/json.h"
#include "engine/format/safetensors.h"

namespace ultrasketch {
namespace {

constexpr char kStateKey[] = "ultrasketch.state";
constexpr char kSettingsKey[] = "ultrasketch.settings";
constexpr char kLayoutKey[] = "ultrasketch.layout";

std::string LayoutText(const ParameterStore& parameters) {
  nlohmann::json layout = nlohmann::json::array();
  for (const auto& [name, size] : parameters.Layout()) layout.push_back({name, size});
  return layout.dump();
}

using NamedTensors = std::vector<std::pair<const char*, at::Tensor>>;

NamedTensors All(const ParameterStore& parameters) {
  return {{"values", parameters.values()},
          {"first_moments", parameters.first_moments()},
          {"second_moments", parameters.second_moments()},
          {"num_steps", parameters.num_steps()}};
}

absl::Status Write(const std::string& path, const NamedTensors& tensors,
                   const std::map<std::string, std::string>& metadata) {
  std::vector<at::Tensor> kept;
  std::vector<TensorToWrite> to_write;
  for (const auto& [name, tensor] : tensors) {
    kept.push_back(tensor.detach().to(at::kCPU).contiguous());
    to_write.emplace_back(
        name, TensorView{DType::kF32, kept.back().sizes().vec(),
                         reinterpret_cast<const uint8_t*>(kept.back().data_ptr<float>())});
  }
  return WriteSafetensors(path, to_write, metadata);
}

// Copies the file's tensors into those of `tensors`.
absl::StatusOr<std::map<std::string, std::string>> Read(const std::string& path,
                                                        const ParameterStore& parameters,
                                                        const NamedTensors& tensors,
                                                        ThreadPool& pool) {
  US_ASSIGN_OR_RETURN(const std::unique_ptr<SafetensorsFile> file, SafetensorsFile::Open(path));
  US_RETURN_IF_ERROR(file->VerifyChecksums(pool));
  const auto layout = file->metadata().find(kLayoutKey);
  if (layout == file->metadata().end() || layout->second != LayoutText(parameters)) {
    return absl::DataLossError(
        absl::StrCat(path, ": expected a checkpoint of this model, found another file"));
  }
  for (const auto& [name, tensor] : tensors) {
    const TensorView* view = nullptr;
    for (const NamedTensor& stored : file->tensors()) {
      if (stored.name == name) view = &stored.view;
    }
    if (view == nullptr || view->dtype != DType::kF32 || view->shape != tensor.sizes().vec()) {
      return absl::DataLossError(absl::StrCat(
          path, ": tensor '", name, "' is absent or of a shape ", "that does not fit the model"));
    }
    std::vector<float> values = ToFloatVector(*view);
    at::Tensor destination = tensor;
    const at::NoGradGuard no_gradient;
    destination.copy_(at::from_blob(values.data(), tensor.sizes(), at::kFloat));
  }
  return file->metadata();
}

nlohmann::json ToJson(const TrainingState& state) {
  return {{"step", state.step},
          {"seconds", state.seconds},
          {"perplexity_teacher", state.perplexity_teacher},
          {"perplexity_before", state.perplexity_before},
          {"perplexity_last", state.perplexity_last},
          {"best_perplexity", state.best_perplexity},
          {"best_step", state.best_step},
          {"evaluated_step", state.evaluated_step},
          {"smoothed_loss", state.smoothed_loss},
          {"least_smoothed_loss", state.least_smoothed_loss},
          {"log_sums", {state.log_sums[0], state.log_sums[1], state.log_sums[2]}},
          {"log_steps", state.log_steps}};
}

absl::StatusOr<TrainingState> ParseState(const nlohmann::json& json, const std::string& path) {
  TrainingState state;
  bool complete = true;
  const auto number = [&](const char* key) {
    const nlohmann::json* value = FindMember(json, key);
    complete = complete && value != nullptr && value->is_number();
    return complete ? value->get<double>() : 0.0;
  };
  state.step = static_cast<int64_t>(number("step"));
  state.seconds = number("seconds");
  state.perplexity_teacher = number("perplexity_teacher");
  state.perplexity_before = number("perplexity_before");
  state.perplexity_last = number("perplexity_last");
  state.best_perplexity = number("best_perplexity");
  state.best_step = static_cast<int64_t>(number("best_step"));
  state.evaluated_step = static_cast<int64_t>(number("evaluated_step"));
  state.smoothed_loss = number("smoothed_loss");
  state.least_smoothed_loss = number("least_smoothed_loss");
  state.log_steps = static_cast<int64_t>(number("log_steps"));
  const nlohmann::json* sums = FindMember(json, "log_sums");
  complete = complete && sums != nullptr && sums->is_array() && sums->size() == 3;
  for (size_t i = 0; complete && i < 3; ++i) {
    complete = (*sums)[i].is_number();
    if (complete) state.log_sums[i] = (*sums)[i].get<double>();
  }
  if (!complete || state.step < 0) {
    return absl::DataLossError(absl::StrCat(path, ": the state of the training is incomplete"));
  }
  return state;
}

absl::StatusOr<nlohmann::json> Metadata(const std::map<std::string, std::string>& metadata,
                                        const char* key, const std::string& path) {
  const auto entry = metadata.find(key);
  if (entry == metadata.end()) {
    return absl::DataLossError(absl::StrCat(path, ": '", key, "' is absent"));
  }
  return ParseJson(entry->second, path);
}

}  // namespace

absl::Status SaveTraining(const std::string& path, const ParameterStore& parameters,
                          const TrainingState& state, const nlohmann::json& settings) {
  return Write(path, All(parameters),
               {{kStateKey, ToJson(state).dump()},
                {kSettingsKey, settings.dump()},
                {kLayoutKey, LayoutText(parameters)}});
}

absl::StatusOr<TrainingState> LoadTraining(const std::string& path, const nlohmann::json& settings,
                                           ParameterStore& parameters, ThreadPool& pool) {
  {
    // Before the layout is compared: other options explain more than other sizes.
    const absl::StatusOr<std::unique_ptr<SafetensorsFile>> file = SafetensorsFile::Open(path);
    if (absl::IsNotFound(file.status())) {
      return absl::FailedPreconditionError(
          absl::StrCat(path, ": there is no checkpoint to resume from"));
    }
    US_RETURN_IF_ERROR(file.status());
    US_ASSIGN_OR_RETURN(const nlohmann::json found,
                        Metadata((*file)->metadata(), kSettingsKey, path));
    for (const auto& [key, value] : settings.items()) {
      const nlohmann::json* before = FindMember(found, key);
      if (before != nullptr && *before == value) continue;
      return absl::FailedPreconditionError(absl::StrCat(
          path, ": was written with ", key, " = ", before == nullptr ? "nothing" : before->dump(),
          ", now it is ", value.dump(), "; resume with the same, or start again without --resume"));
    }
  }
  US_ASSIGN_OR_RETURN(const auto metadata, Read(path, parameters, All(parameters), pool));
  US_ASSIGN_OR_RETURN(const nlohmann::json state, Metadata(metadata, kStateKey, path));
  return ParseState(state, path);
}

absl::Status SaveParameters(const std::string& path, const ParameterStore& parameters) {
  return Write(path, {{"values", parameters.values()}}, {{kLayoutKey, LayoutText(parameters)}});
}

absl::Status LoadParameters(const std::string& path, ParameterStore& parameters, ThreadPool& pool) {
  return Read(path, parameters, {{"values", parameters.values()}}, pool).status();
}

}  // namespace ultrasketch
