#include "server/kserve_request.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include "engine/base/status.h"
#include "engine/base/strings.h"
#include "engine/format/json.h"
#include "server/kserve_tensor.h"
#include "server/status.h"

namespace ultrasketch {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Reflection;
using Json = nlohmann::json;

// An option of generation: the name that vLLM and Triton's backend for it give it, and the field of
// GenerateRequest.
struct Option {
  std::string_view name;
  const char* field;
};
constexpr Option kOptions[] = {
    {"max_tokens", "max_tokens"},
    {"min_tokens", "min_tokens"},
    {"temperature", "temperature"},
    {"top_p", "top_p"},
    {"top_k", "top_k"},
    {"min_p", "min_p"},
    {"repetition_penalty", "repetition_penalty"},
    {"presence_penalty", "presence_penalty"},
    {"frequency_penalty", "frequency_penalty"},
    {"stop", "stop"},
    {"stop_token_ids", "stop_token_ids"},
    {"ignore_eos", "ignore_eos"},
    {"include_stop_str_in_output", "include_stop_in_output"},
    {"skip_special_tokens", "skip_special_tokens"},
    {"seed", "seed"},
    {"n", "n"},
    {"priority", "priority"},
    {"add_special_tokens", "add_special_tokens"},
    {"split_special_tokens", "split_special_tokens"},
    {"max_response_bytes", "max_response_bytes"},
};

// Inputs that are no option.
struct Input {
  std::string_view name;
  std::string_view datatype;
};
constexpr Input kInputs[] = {
    {"text_input", "BYTES"},
    {"stream", "BOOL"},
    {"sampling_parameters", "BYTES"},
    {"exclude_input_in_output", "BOOL"},
    {"return_finish_reason", "BOOL"},
    {"return_num_input_tokens", "BOOL"},
    {"return_num_output_tokens", "BOOL"},
};

template <typename Entries>
std::string Names(const Entries& entries) {
  std::vector<std::string> names;
  for (const auto& entry : entries) names.emplace_back(entry.name);
  return absl::StrJoin(names, ", ");
}

const FieldDescriptor& FieldOf(const Option& option) {
  return *v1::GenerateRequest::descriptor()->FindFieldByName(option.field);
}

const Option* FindOption(std::string_view name) {
  for (const Option& option : kOptions) {
    if (option.name == name) return &option;
  }
  return nullptr;
}

// The datatypes that an option's tensor may have; the first is the one to be told.
std::vector<std::string_view> DatatypesOf(const FieldDescriptor& field) {
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return {"INT32", "INT64", "UINT32", "UINT64"};
    case FieldDescriptor::CPPTYPE_INT64:
      return {"INT64", "INT32", "UINT32", "UINT64"};
    case FieldDescriptor::CPPTYPE_UINT64:
      return {"UINT64", "INT64", "UINT32", "INT32"};
    case FieldDescriptor::CPPTYPE_FLOAT:
      return {"FP32", "FP64"};
    case FieldDescriptor::CPPTYPE_BOOL:
      return {"BOOL"};
    default:
      return {"BYTES"};
  }
}

std::string Describe(const Json& value) {
  return value.is_string() ? Quoted(value.get_ref<const std::string&>(), 64) : DescribeJson(&value);
}

// Numbers may come as text: Triton's backend for vLLM takes them so, and its examples send them so.
template <typename Integer>
std::optional<Integer> ToInteger(const Json& value) {
  constexpr auto kMin = std::numeric_limits<Integer>::min();
  constexpr auto kMax = std::numeric_limits<Integer>::max();
  if (value.is_string()) {
    Integer number;
    if (absl::SimpleAtoi(value.get_ref<const std::string&>(), &number)) return number;
    return std::nullopt;
  }
  if (value.is_number_unsigned()) {
    const auto number = value.get<uint64_t>();
    if (number <= static_cast<uint64_t>(kMax)) return static_cast<Integer>(number);
  } else if (value.is_number_integer()) {
    const auto number = value.get<int64_t>();
    if (number < 0 && std::is_unsigned_v<Integer>) return std::nullopt;
    if (number >= static_cast<int64_t>(kMin) &&
        (number < 0 || static_cast<uint64_t>(number) <= static_cast<uint64_t>(kMax))) {
      return static_cast<Integer>(number);
    }
  } else if (value.is_number_float()) {
    const auto number = value.get<double>();
    if (std::abs(number) < 1e15 && number == std::floor(number)) {
      return ToInteger<Integer>(Json(static_cast<int64_t>(number)));
    }
  }
  return std::nullopt;
}

std::optional<float> ToFloat(const Json& value) {
  float number;
  if (value.is_number()) return value.get<float>();
  if (value.is_string() && absl::SimpleAtof(value.get_ref<const std::string&>(), &number)) {
    return number;
  }
  return std::nullopt;
}

std::optional<bool> ToBool(const Json& value) {
  if (value.is_boolean()) return value.get<bool>();
  if (value.is_number_integer() && (value == 0 || value == 1)) return value == 1;
  if (value.is_string()) {
    const auto& text = value.get_ref<const std::string&>();
    if (absl::EqualsIgnoreCase(text, "true") || text == "1") return true;
    if (absl::EqualsIgnoreCase(text, "false") || text == "0") return false;
  }
  return std::nullopt;
}

absl::Status Expected(std::string_view name, std::string_view what, const Json& value) {
  return InvalidField(name, absl::StrCat("expected ", A(what), ", found ", Describe(value)));
}

// Sets or replaces the option; JSON's null leaves it unset.
absl::Status SetOption(const Option& option, const Json& value, v1::GenerateRequest& request) {
  if (value.is_null()) return absl::OkStatus();
  const FieldDescriptor& field = FieldOf(option);
  const Reflection& reflection = *request.GetReflection();
  if (field.is_repeated()) {
    reflection.ClearField(&request, &field);
    const Json list = value.is_array() ? value : Json::array({value});
    for (const Json& element : list) {
      if (field.cpp_type() == FieldDescriptor::CPPTYPE_STRING) {
        if (!element.is_string()) return Expected(option.name, "strings", element);
        reflection.AddString(&request, &field, element.get<std::string>());
      } else {
        const auto number = ToInteger<int32_t>(element);
        if (!number) return Expected(option.name, "token ids", element);
        reflection.AddInt32(&request, &field, *number);
      }
    }
    return absl::OkStatus();
  }
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32: {
      const auto number = ToInteger<int32_t>(value);
      if (!number) return Expected(option.name, "a whole number of 32 bits", value);
      // What vLLM's users write for "all".
      const bool is_all = option.name == "top_k" && *number == -1;
      reflection.SetInt32(&request, &field, is_all ? 0 : *number);
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_INT64: {
      const auto number = ToInteger<int64_t>(value);
      if (!number) return Expected(option.name, "a whole number of 64 bits", value);
      reflection.SetInt64(&request, &field, *number);
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_UINT64: {
      const auto number = ToInteger<uint64_t>(value);
      if (!number) return Expected(option.name, "a whole number of 0 to 2^64 - 1", value);
      reflection.SetUInt64(&request, &field, *number);
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_FLOAT: {
      const auto number = ToFloat(value);
      if (!number) return Expected(option.name, "a number", value);
      reflection.SetFloat(&request, &field, *number);
      return absl::OkStatus();
    }
    default: {
      const auto flag = ToBool(value);
      if (!flag) return Expected(option.name, "true or false", value);
      reflection.SetBool(&request, &field, *flag);
      return absl::OkStatus();
    }
  }
}

absl::StatusOr<Json> ValueOf(std::string_view name, const inference::InferParameter& parameter) {
  switch (parameter.parameter_choice_case()) {
    case inference::InferParameter::kBoolParam:
      return Json(parameter.bool_param());
    case inference::InferParameter::kInt64Param:
      return Json(parameter.int64_param());
    case inference::InferParameter::kStringParam:
      return Json(parameter.string_param());
    case inference::InferParameter::kDoubleParam:
      return Json(parameter.double_param());
    case inference::InferParameter::kUint64Param:
      return Json(parameter.uint64_param());
    case inference::InferParameter::PARAMETER_CHOICE_NOT_SET:
      break;
  }
  return InvalidField("parameters", absl::StrCat(Quoted(name), " has no value"));
}

absl::Status TranslateParameters(const inference::ModelInferRequest& message,
                                 v1::GenerateRequest& request) {
  for (const auto& [name, parameter] : message.parameters()) {
    US_ASSIGN_OR_RETURN(const Json value, ValueOf(name, parameter));
    if (name == "triton_enable_empty_final_response") {
      // The last response has outputs in any case.
      if (!ToBool(value)) return Expected(name, "true or false", value);
      continue;
    }
    const Option* option = FindOption(name);
    if (option == nullptr) {
      return InvalidField("parameters", absl::StrCat(Quoted(name), " is not supported; there are ",
                                                     Names(kOptions)));
    }
    US_RETURN_IF_ERROR(SetOption(*option, value, request));
  }
  return absl::OkStatus();
}

absl::Status TranslateSamplingParameters(const Json& value, v1::GenerateRequest& request) {
  constexpr char kName[] = "sampling_parameters";
  const absl::StatusOr<Json> object = ParseJson(value.get_ref<const std::string&>(), kName);
  if (!object.ok()) return absl::InvalidArgumentError(object.status().message());
  if (!object->is_object()) return Expected(kName, "a JSON object", *object);
  for (const auto& [name, member] : object->items()) {
    const Option* option = FindOption(name);
    if (option == nullptr) {
      return InvalidField(
          kName, absl::StrCat(Quoted(name), " is not supported; there are ", Names(kOptions)));
    }
    US_RETURN_IF_ERROR(SetOption(*option, member, request));
  }
  return absl::OkStatus();
}

// Which inputs there were, by name; those that are no option with their value.
struct Inputs {
  std::map<std::string, Json> values;                   // one element each
  std::vector<std::pair<const Option*, Json>> options;  // a list where the option is one
};

absl::StatusOr<Inputs> ReadInputs(const inference::ModelInferRequest& message) {
  const int num_raw = message.raw_input_contents_size();
  if (num_raw != 0 && num_raw != message.inputs_size()) {
    return InvalidField("raw_input_contents",
                        absl::StrCat(num_raw, " elements for ", message.inputs_size(),
                                     " inputs; expected one for each, or none at all"));
  }
  Inputs inputs;
  std::map<std::string_view, int> counts;
  for (int i = 0; i < message.inputs_size(); ++i) {
    const auto& input = message.inputs(i);
    const std::string* raw = num_raw == 0 ? nullptr : &message.raw_input_contents(i);
    if (++counts[input.name()] > 1) {
      return InvalidField("inputs", absl::StrCat(Quoted(input.name(), 64), " is there twice"));
    }
    if (const Option* option = FindOption(input.name())) {
      const FieldDescriptor& field = FieldOf(*option);
      US_ASSIGN_OR_RETURN(std::vector<Json> values,
                          ReadTensor(input, raw, DatatypesOf(field), field.is_repeated()));
      inputs.options.emplace_back(
          option, field.is_repeated() ? Json(std::move(values)) : std::move(values.front()));
      continue;
    }
    const auto* known =
        std::find_if(std::begin(kInputs), std::end(kInputs),
                     [&](const Input& entry) { return entry.name == input.name(); });
    if (known == std::end(kInputs)) {
      return InvalidField("inputs",
                          absl::StrCat(Quoted(input.name(), 64), " is not supported; there are ",
                                       Names(kInputs), ", ", Names(kOptions)));
    }
    US_ASSIGN_OR_RETURN(std::vector<Json> values,
                        ReadTensor(input, raw, {known->datatype}, /*is_list=*/false));
    inputs.values[input.name()] = std::move(values.front());
  }
  return inputs;
}

bool IsTrue(const Inputs& inputs, std::string_view name, bool otherwise) {
  const auto found = inputs.values.find(std::string(name));
  return found == inputs.values.end() ? otherwise : found->second.get<bool>();
}

absl::Status ChooseOutputs(const inference::ModelInferRequest& message, const Inputs& inputs,
                           InferCall* call) {
  for (const InferOutput& output : kInferOutputs) {
    call->*output.is_wanted =
        message.outputs().empty() &&
        (output.input.empty() || IsTrue(inputs, output.input, /*otherwise=*/false));
  }
  for (const auto& requested : message.outputs()) {
    const auto* known =
        std::find_if(std::begin(kInferOutputs), std::end(kInferOutputs),
                     [&](const InferOutput& output) { return output.name == requested.name(); });
    if (known == std::end(kInferOutputs)) {
      return InvalidField(
          "outputs", absl::StrCat(Quoted(requested.name(), 64), " is not supported; there are ",
                                  Names(kInferOutputs)));
    }
    if (!requested.parameters().empty()) {
      return InvalidField("outputs", absl::StrCat(A(known->name), " has the parameter ",
                                                  Quoted(requested.parameters().begin()->first),
                                                  "; parameters of outputs are not supported"));
    }
    call->*known->is_wanted = true;
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckKserveVersion(std::string_view model_name, std::string_view version) {
  if (version.empty() || version == kKserveModelVersion) return absl::OkStatus();
  return absl::NotFoundError(absl::StrCat("model ", Quoted(model_name), " has no version ",
                                          Quoted(version, 32), ": there is only ",
                                          A(kKserveModelVersion)));
}

absl::Status TranslateInferRequest(const inference::ModelInferRequest& message, InferCall* call) {
  call->model_name = message.model_name();
  call->id = message.id();
  call->request.set_model(message.model_name());
  US_RETURN_IF_ERROR(CheckKserveVersion(message.model_name(), message.model_version()));
  US_ASSIGN_OR_RETURN(Inputs inputs, ReadInputs(message));
  US_RETURN_IF_ERROR(ChooseOutputs(message, inputs, call));
  // What is more specific comes later and counts.
  US_RETURN_IF_ERROR(TranslateParameters(message, call->request));
  if (const auto json = inputs.values.find("sampling_parameters"); json != inputs.values.end()) {
    US_RETURN_IF_ERROR(TranslateSamplingParameters(json->second, call->request));
  }
  for (const auto& [option, value] : inputs.options) {
    US_RETURN_IF_ERROR(SetOption(*option, value, call->request));
  }
  const auto text = inputs.values.find("text_input");
  if (text == inputs.values.end()) return InvalidField("text_input", "required");
  call->request.set_text(std::move(text->second.get_ref<std::string&>()));

  call->stream = IsTrue(inputs, "stream", false);
  call->echoes_input = !IsTrue(inputs, "exclude_input_in_output", true);
  if (call->stream && call->echoes_input) {
    return InvalidField("exclude_input_in_output", "false is not possible with stream");
  }
  if (call->stream && call->request.has_n() && call->request.n() != 1) {
    return InvalidField("n", absl::StrCat(call->request.n(), "; with stream, only 1 is possible"));
  }
  return absl::OkStatus();
}

absl::Status ForKserve(const absl::Status& status) {
  absl::string_view rest = status.message();
  if (!absl::IsInvalidArgument(status) || !absl::ConsumePrefix(&rest, "text: ")) return status;
  return InvalidField("text_input", S(rest));
}

void FillInputMetadata(inference::ModelMetadataResponse* response) {
  const auto add = [response](std::string_view name, std::string_view datatype, int64_t size) {
    auto& tensor = *response->add_inputs();
    tensor.set_name(std::string(name));
    tensor.set_datatype(std::string(datatype));
    tensor.add_shape(size);
  };
  for (const Input& input : kInputs) add(input.name, input.datatype, 1);
  for (const Option& option : kOptions) {
    const FieldDescriptor& field = FieldOf(option);
    add(option.name, DatatypesOf(field).front(), field.is_repeated() ? -1 : 1);
  }
}

}  // namespace ultrasketch
