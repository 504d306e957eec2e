// What a request of the Open Inference Protocol asks for, in ultrasketch.v1. docs/kserve.md has the
// names.
#ifndef ULTRASKETCH_SERVER_KSERVE_REQUEST_H_
#define ULTRASKETCH_SERVER_KSERVE_REQUEST_H_

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "inference/inference_service.pb.h"

#include "ultrasketch/v1/generation.pb.h"

namespace ultrasketch {

// The only version that models have here.
inline constexpr std::string_view kKserveModelVersion = "1";

// OK for no version, too; else NOT_FOUND.
absl::Status CheckKserveVersion(std::string_view model_name, std::string_view version);

// What a ModelInferRequest asks for.
struct InferCall {
  std::string model_name;
  std::string id;
  v1::GenerateRequest request;
  bool stream = false;        // in pieces, as tokens come
  bool echoes_input = false;  // the text in front of its completion

  // Outputs of the response.
  bool has_text_output = false;
  bool has_finish_reason = false;
  bool has_num_input_tokens = false;
  bool has_num_output_tokens = false;
};

// A tensor of the response.
struct InferOutput {
  std::string_view name;
  std::string_view datatype;
  bool InferCall::*is_wanted;
  std::string_view input;  // that asks for it; empty: always there
};
inline constexpr InferOutput kInferOutputs[] = {
    {"text_output", "BYTES", &InferCall::has_text_output, ""},
    {"finish_reason", "BYTES", &InferCall::has_finish_reason, "return_finish_reason"},
    {"num_input_tokens", "UINT32", &InferCall::has_num_input_tokens, "return_num_input_tokens"},
    {"num_output_tokens", "UINT32", &InferCall::has_num_output_tokens, "return_num_output_tokens"},
};

// INVALID_ARGUMENT, "<field>: ...", for inputs, outputs and parameters that there are not, and for
// wrong datatypes, shapes and contents; the field is the input's name where there is one. NOT_FOUND
// for a version that there is not. What the values mean is left for TranslateGenerateRequest to
// check. `call` has the model's name and the request's id even then.
absl::Status TranslateInferRequest(const inference::ModelInferRequest& message, InferCall* call);

// An error of TranslateGenerateRequest in the names of this protocol.
absl::Status ForKserve(const absl::Status& status);

// The tensors that models take.
void FillInputMetadata(inference::ModelMetadataResponse* response);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_KSERVE_REQUEST_H_
