// Between the messages of the Open Inference Protocol and those of ultrasketch.v1. docs/kserve.md
// has the names.
#ifndef ULTRASKETCH_SERVER_KSERVE_TRANSLATION_H_
#define ULTRASKETCH_SERVER_KSERVE_TRANSLATION_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
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

// INVALID_ARGUMENT, "<field>: ...", for inputs, outputs and parameters that there are not, and for
// wrong datatypes, shapes and contents; the field is the input's name where there is one. NOT_FOUND
// for a version that there is not. What the values mean is left for TranslateGenerateRequest to
// check. `call` has the model's name and the request's id even then.
absl::Status TranslateInferRequest(const inference::ModelInferRequest& message, InferCall* call);

// What one response says; an element a completion.
struct InferOutputs {
  std::vector<std::string> texts;
  std::vector<std::string> finish_reasons;  // "stop", "length"; empty: not finished
  std::vector<uint32_t> num_output_tokens;
  uint32_t num_input_tokens = 0;
};

// The answer as a whole.
InferOutputs OutputsOf(const v1::GenerateResponse& response);

std::string FinishReasonText(v1::FinishReason reason);

// All values are in raw_output_contents, which is what tritonclient reads.
void FillInferResponse(const InferCall& call, const InferOutputs& outputs,
                       inference::ModelInferResponse* response);

// An error of TranslateGenerateRequest in the names of this protocol.
absl::Status ForKserve(const absl::Status& status);

// The tensors that models take and give.
void FillTensorMetadata(inference::ModelMetadataResponse* response);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_KSERVE_TRANSLATION_H_
