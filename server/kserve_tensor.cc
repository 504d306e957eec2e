#include "server/kserve_tensor.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

#include "engine/base/status.h"
#include "engine/base/strings.h"
#include "server/status.h"

namespace ultrasketch {
namespace {

using Json = nlohmann::json;

// Elements of a tensor: as many as there may be stop token ids.
constexpr int64_t kMaxElements = 1024;

// Little-endian, as the protocol's raw contents are.
template <typename Number>
absl::StatusOr<std::vector<Json>> RawNumbers(std::string_view name, std::string_view raw,
                                             int64_t num_elements) {
  if (static_cast<int64_t>(raw.size()) != num_elements * static_cast<int64_t>(sizeof(Number))) {
    return InvalidField(
        name, absl::StrCat(raw.size(), " bytes in raw_input_contents; the shape has ", num_elements,
                           " elements of ", sizeof(Number)));
  }
  std::vector<Json> values;
  for (int64_t i = 0; i < num_elements; ++i) {
    Number number;
    std::memcpy(&number, raw.data() + static_cast<size_t>(i) * sizeof(Number), sizeof(Number));
    if constexpr (std::is_same_v<Number, uint8_t>) {
      values.emplace_back(number != 0);  // BOOL
    } else {
      values.emplace_back(number);
    }
  }
  return values;
}

absl::StatusOr<std::vector<Json>> RawStrings(std::string_view name, std::string_view raw,
                                             int64_t num_elements) {
  std::vector<Json> values;
  for (int64_t i = 0; i < num_elements; ++i) {
    uint32_t size = 0;
    if (raw.size() >= sizeof(size)) std::memcpy(&size, raw.data(), sizeof(size));
    if (raw.size() < sizeof(size) || raw.size() - sizeof(size) < size) {
      return InvalidField(
          name, absl::StrCat("raw_input_contents ends within element ", i, " of ", num_elements,
                             "; each is its length in 4 bytes and its bytes"));
    }
    values.emplace_back(std::string(raw.substr(sizeof(size), size)));
    raw.remove_prefix(sizeof(size) + size);
  }
  if (!raw.empty()) {
    return InvalidField(
        name, absl::StrCat(raw.size(), " bytes of raw_input_contents are left after ", num_elements,
                           " elements"));
  }
  return values;
}

absl::StatusOr<std::vector<Json>> RawValues(
    const inference::ModelInferRequest::InferInputTensor& input, std::string_view raw,
    int64_t num_elements) {
  const std::string& datatype = input.datatype();
  if (datatype == "BOOL") return RawNumbers<uint8_t>(input.name(), raw, num_elements);
  if (datatype == "INT32") return RawNumbers<int32_t>(input.name(), raw, num_elements);
  if (datatype == "INT64") return RawNumbers<int64_t>(input.name(), raw, num_elements);
  if (datatype == "UINT32") return RawNumbers<uint32_t>(input.name(), raw, num_elements);
  if (datatype == "UINT64") return RawNumbers<uint64_t>(input.name(), raw, num_elements);
  if (datatype == "FP32") return RawNumbers<float>(input.name(), raw, num_elements);
  if (datatype == "FP64") return RawNumbers<double>(input.name(), raw, num_elements);
  return RawStrings(input.name(), raw, num_elements);
}

template <typename Field>
absl::StatusOr<std::vector<Json>> FieldValues(std::string_view name, const char* field_name,
                                              const Field& field, int64_t num_elements) {
  if (field.size() != num_elements) {
    return InvalidField(name, absl::StrCat(field.size(), " elements in contents.", field_name,
                                           "; the shape has ", num_elements));
  }
  std::vector<Json> values;
  for (const auto& element : field) values.emplace_back(element);
  return values;
}

absl::StatusOr<std::vector<Json>> ContentValues(
    const inference::ModelInferRequest::InferInputTensor& input, int64_t num_elements) {
  const inference::InferTensorContents& contents = input.contents();
  const std::string& name = input.name();
  const std::string& datatype = input.datatype();
  if (datatype == "BOOL") {
    return FieldValues(name, "bool_contents", contents.bool_contents(), num_elements);
  }
  if (datatype == "INT32") {
    return FieldValues(name, "int_contents", contents.int_contents(), num_elements);
  }
  if (datatype == "INT64") {
    return FieldValues(name, "int64_contents", contents.int64_contents(), num_elements);
  }
  if (datatype == "UINT32") {
    return FieldValues(name, "uint_contents", contents.uint_contents(), num_elements);
  }
  if (datatype == "UINT64") {
    return FieldValues(name, "uint64_contents", contents.uint64_contents(), num_elements);
  }
  if (datatype == "FP32") {
    return FieldValues(name, "fp32_contents", contents.fp32_contents(), num_elements);
  }
  if (datatype == "FP64") {
    return FieldValues(name, "fp64_contents", contents.fp64_contents(), num_elements);
  }
  return FieldValues(name, "bytes_contents", contents.bytes_contents(), num_elements);
}

absl::StatusOr<int64_t> NumElements(const inference::ModelInferRequest::InferInputTensor& input,
                                    bool is_list) {
  const std::string shape = absl::StrCat("[", absl::StrJoin(input.shape(), ", "), "]");
  int64_t num_elements = 1;
  for (const int64_t size : input.shape()) {
    if (size < 0 || size > kMaxElements || (num_elements *= size) > kMaxElements) {
      return InvalidField(input.name(), absl::StrCat("shape ", shape, "; at most ", kMaxElements,
                                                     " elements are allowed"));
    }
  }
  if (is_list ? input.shape_size() == 0 : num_elements != 1) {
    return InvalidField(input.name(),
                        absl::StrCat("shape ", shape, "; expected ", is_list ? "[n]" : "[1]"));
  }
  return num_elements;
}

}  // namespace

absl::StatusOr<std::vector<Json>> ReadTensor(
    const inference::ModelInferRequest::InferInputTensor& input, const std::string* raw,
    const std::vector<std::string_view>& datatypes, bool is_list) {
  if (!input.parameters().empty()) {
    return InvalidField(
        input.name(), absl::StrCat("has the parameter ", Quoted(input.parameters().begin()->first),
                                   "; parameters of inputs, shared memory among them, are not "
                                   "supported"));
  }
  const bool fits = std::any_of(datatypes.begin(), datatypes.end(),
                                [&](std::string_view type) { return type == input.datatype(); });
  if (!fits) {
    return InvalidField(
        input.name(),
        absl::StrCat(
            "datatype ", Quoted(input.datatype(), 32), "; expected ",
            absl::StrJoin(std::vector<std::string>(datatypes.begin(), datatypes.end()), " or ")));
  }
  US_ASSIGN_OR_RETURN(const int64_t num_elements, NumElements(input, is_list));
  if (raw == nullptr) return ContentValues(input, num_elements);
  if (input.has_contents()) {
    return InvalidField(input.name(), "has contents, and raw_input_contents as well");
  }
  return RawValues(input, *raw, num_elements);
}

}  // namespace ultrasketch
