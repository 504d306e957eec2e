#include "engine/base/tensor.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

#include "engine/base/check.h"
#include "engine/base/strings.h"

namespace ultrasketch {
namespace {

template <typename T>
T LoadElement(const uint8_t* data, int64_t index) {
  T value;
  std::memcpy(&value, data + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

// Whether all of `count` elements have an exponent that is not all ones. `exponent` is the mask of
// the exponent, which lies right below the sign: adding a one to its last place carries into the
// sign exactly when all of it is set. No branch and no comparison per element, so that any
// instruction set does it in vectors.
template <typename Bits>
bool AllFinite(const uint8_t* data, int64_t count, Bits exponent) {
  const auto last_place = static_cast<Bits>(exponent & (~exponent + 1));
  Bits carries = 0;
  for (int64_t i = 0; i < count; ++i) {
    carries |= static_cast<Bits>((LoadElement<Bits>(data, i) & exponent) + last_place);
  }
  return carries >> (8 * sizeof(Bits) - 1) == 0;
}

bool AllFinite(const TensorView& tensor, int64_t first, int64_t count) {
  const uint8_t* data = tensor.data + first * ElementBytes(tensor.dtype);
  switch (tensor.dtype) {
    case DType::kF32:
      return AllFinite<uint32_t>(data, count, 0x7f800000u);
    case DType::kBF16:
      return AllFinite<uint16_t>(data, count, 0x7f80u);
    case DType::kF16:
      return AllFinite<uint16_t>(data, count, 0x7c00u);
    default:
      return false;
  }
}

}  // namespace

int64_t TensorView::num_elements() const {
  int64_t count = 1;
  for (const int64_t extent : shape) count *= extent;
  return count;
}

std::string ShapeString(absl::Span<const int64_t> shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

void CopyToFloat(const TensorView& tensor, int64_t first, int64_t count, float* out) {
  const uint8_t* data = tensor.data + first * ElementBytes(tensor.dtype);
  switch (tensor.dtype) {
    case DType::kF32:
      std::memcpy(out, data, static_cast<size_t>(count) * sizeof(float));
      return;
    case DType::kBF16:
      for (int64_t i = 0; i < count; ++i) out[i] = Bf16ToFloat(LoadElement<uint16_t>(data, i));
      return;
    case DType::kF16:
      for (int64_t i = 0; i < count; ++i) out[i] = HalfToFloat(LoadElement<uint16_t>(data, i));
      return;
    case DType::kF64:
      for (int64_t i = 0; i < count; ++i) {
        out[i] = static_cast<float>(LoadElement<double>(data, i));
      }
      return;
    default:
      US_CHECK(false && "CopyToFloat needs a floating-point tensor");
  }
}

std::vector<float> ToFloatVector(const TensorView& tensor) {
  std::vector<float> values(static_cast<size_t>(tensor.num_elements()));
  CopyToFloat(tensor, 0, tensor.num_elements(), values.data());
  return values;
}

absl::Status TensorSource::Missing(std::string_view name) const {
  return absl::NotFoundError(
      absl::StrCat(Describe(name), ": tensor ", Quoted(name, 200), " is missing"));
}

absl::StatusOr<TensorView> GetTensor(const TensorSource& source, std::string_view name,
                                     absl::Span<const DType> dtypes,
                                     absl::Span<const int64_t> shape) {
  const TensorView* tensor = source.Find(name);
  if (tensor == nullptr) return source.Missing(name);
  bool dtype_ok = dtypes.empty() && IsFloating(tensor->dtype);
  for (const DType dtype : dtypes) dtype_ok = dtype_ok || dtype == tensor->dtype;
  if (!dtype_ok) {
    const std::string expected =
        dtypes.empty() ? "F32, F16, BF16 or F64"
                       : absl::StrJoin(dtypes, " or ", [](std::string* out, DType dtype) {
                           absl::StrAppend(out, A(DTypeName(dtype)));
                         });
    return absl::DataLossError(absl::StrCat(A(source.Describe(name)), ": tensor ",
                                            Quoted(name, 200), ": expected dtype ", expected,
                                            ", found ", A(DTypeName(tensor->dtype))));
  }
  bool shape_ok = tensor->shape.size() == shape.size();
  for (size_t i = 0; shape_ok && i < shape.size(); ++i) {
    shape_ok = shape[i] == -1 || shape[i] == tensor->shape[i];
  }
  if (!shape_ok) {
    return absl::DataLossError(
        absl::StrCat(A(source.Describe(name)), ": tensor ", Quoted(name, 200), ": expected shape ",
                     ShapeString(shape), ", found ", ShapeString(tensor->shape)));
  }
  return *tensor;
}

absl::Status CheckFinite(const TensorSource& source, std::string_view name,
                         const TensorView& tensor) {
  constexpr int64_t kChunk = 4096;
  const int64_t count = tensor.num_elements();
  for (int64_t first = 0; first < count; first += kChunk) {
    const int64_t n = std::min(kChunk, count - first);
    if (AllFinite(tensor, first, n)) continue;
    float values[kChunk];
    CopyToFloat(tensor, first, n, values);
    for (int64_t i = 0; i < n; ++i) {
      if (std::isfinite(values[i])) continue;
      return absl::DataLossError(absl::StrCat(
          A(source.Describe(name)), ": tensor ", Quoted(name, 200), ": element ", first + i, " is ",
          std::isnan(values[i]) ? "NaN" : "infinite", ", expected a finite number"));
    }
  }
  return absl::OkStatus();
}

}  // namespace ultrasketch
