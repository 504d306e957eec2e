#include "server/kserve_response.h"

#include <string_view>

namespace ultrasketch {
namespace {

void AppendNumber(uint32_t number, std::string* raw) {
  raw->append(reinterpret_cast<const char*>(&number), sizeof(number));
}

std::string RawOf(const std::vector<std::string>& texts) {
  std::string raw;
  for (const std::string& text : texts) {
    AppendNumber(static_cast<uint32_t>(text.size()), &raw);
    raw += text;
  }
  return raw;
}

std::string RawOf(const std::vector<uint32_t>& numbers) {
  std::string raw;
  for (const uint32_t number : numbers) AppendNumber(number, &raw);
  return raw;
}

template <typename Value>
void AddOutput(std::string_view name, std::string_view datatype, const std::vector<Value>& values,
               inference::ModelInferResponse* response) {
  auto& output = *response->add_outputs();
  output.set_name(std::string(name));
  output.set_datatype(std::string(datatype));
  output.add_shape(static_cast<int64_t>(values.size()));
  response->add_raw_output_contents(RawOf(values));
}

}  // namespace

std::string FinishReasonText(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_STOP:
      return "stop";
    case v1::FINISH_REASON_LENGTH:
      return "length";
    default:
      return "";
  }
}

InferOutputs OutputsOf(const v1::GenerateResponse& response) {
  InferOutputs outputs;
  for (const v1::Completion& completion : response.completions()) {
    outputs.texts.push_back(completion.text());
    outputs.finish_reasons.push_back(FinishReasonText(completion.finish_reason()));
    outputs.num_output_tokens.push_back(static_cast<uint32_t>(completion.token_ids_size()));
  }
  outputs.num_input_tokens = static_cast<uint32_t>(response.usage().prompt_tokens());
  return outputs;
}

void FillInferResponse(const InferCall& call, const InferOutputs& outputs,
                       inference::ModelInferResponse* response) {
  response->set_model_name(call.model_name);
  response->set_model_version(std::string(kKserveModelVersion));
  response->set_id(call.id);
  if (call.has_text_output) {
    std::vector<std::string> texts = outputs.texts;
    if (call.echoes_input) {
      for (std::string& text : texts) text.insert(0, call.request.text());
    }
    AddOutput("text_output", "BYTES", texts, response);
  }
  if (call.has_finish_reason) {
    AddOutput("finish_reason", "BYTES", outputs.finish_reasons, response);
  }
  if (call.has_num_input_tokens) {
    AddOutput("num_input_tokens", "UINT32", std::vector<uint32_t>{outputs.num_input_tokens},
              response);
  }
  if (call.has_num_output_tokens) {
    AddOutput("num_output_tokens", "UINT32", outputs.num_output_tokens, response);
  }
}

void FillOutputMetadata(inference::ModelMetadataResponse* response) {
  for (const InferOutput& output : kInferOutputs) {
    auto& tensor = *response->add_outputs();
    tensor.set_name(std::string(output.name));
    tensor.set_datatype(std::string(output.datatype));
    tensor.add_shape(output.name == "num_input_tokens" ? 1 : -1);
  }
}

}  // namespace ultrasketch
