// Tensors of the Open Inference Protocol as values.
#ifndef ULTRASKETCH_SERVER_KSERVE_TENSOR_H_
#define ULTRASKETCH_SERVER_KSERVE_TENSOR_H_

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "inference/inference_service.pb.h"

#include "engine/format/json.h"

namespace ultrasketch {

// The elements of an input. `raw` is its element of raw_input_contents; null: they are in the
// input's own contents. The datatype must be one of `datatypes`, and the shape one element, or with
// `is_list` at most 1024. INVALID_ARGUMENT, the input's name in front, for what does not fit.
absl::StatusOr<std::vector<nlohmann::json>> ReadTensor(
    const inference::ModelInferRequest::InferInputTensor& input, const std::string* raw,
    const std::vector<std::string_view>& datatypes, bool is_list);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_KSERVE_TENSOR_H_
