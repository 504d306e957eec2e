// What a response of the Open Inference Protocol says. docs/kserve.md has the names.
#ifndef ULTRASKETCH_SERVER_KSERVE_RESPONSE_H_
#define ULTRASKETCH_SERVER_KSERVE_RESPONSE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "inference/inference_service.pb.h"

#include "server/kserve_request.h"
#include "ultrasketch/v1/generation.pb.h"

namespace ultrasketch {

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

// The tensors that models give.
void FillOutputMetadata(inference::ModelMetadataResponse* response);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_KSERVE_RESPONSE_H_
