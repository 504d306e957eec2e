// Views of stored tensors, and where they come from.
#ifndef ULTRASKETCH_ENGINE_BASE_TENSOR_H_
#define ULTRASKETCH_ENGINE_BASE_TENSOR_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

#include "engine/base/dtype.h"

namespace ultrasketch {

// A dense row-major tensor in memory that somebody else owns (usually a mapped
// file). `data` need not be aligned to the element size.
struct TensorView {
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  const uint8_t* data = nullptr;

  int64_t num_elements() const;
  int64_t num_bytes() const { return num_elements() * ElementBytes(dtype); }
};

struct NamedTensor {
  std::string name;
  TensorView view;
};

// "[768, 256]".
std::string ShapeString(absl::Span<const int64_t> shape);

// Element `first` to `first + count` of a floating-point tensor (F32, F16,
// BF16, F64) as float. The caller guarantees dtype and range.
void CopyToFloat(const TensorView& tensor, int64_t first, int64_t count, float* out);

// The whole of a floating-point tensor as float.
std::vector<float> ToFloatVector(const TensorView& tensor);

// Tensors by name. Implementations are immutable after construction and safe to
// share between threads. Views stay valid as long as the source.
class TensorSource {
 public:
  virtual ~TensorSource() = default;

  // Null when there is no such tensor.
  virtual const TensorView* Find(std::string_view name) const = 0;

  // A name for error messages: usually a path. For a sharded checkpoint the
  // shard that holds `name`, or the folder when there is none.
  virtual std::string Describe(std::string_view name) const = 0;

  // The error for a tensor that Find does not have: NOT_FOUND that says so, or
  // what a source knows better.
  virtual absl::Status Missing(std::string_view name) const;
};

// The tensor called `name`, checked: source.Missing(name) when absent, DATA_LOSS naming
// file, tensor, expected and found when dtype or shape differ. An empty
// `dtypes` accepts every floating type; -1 in `shape` accepts any extent there.
absl::StatusOr<TensorView> GetTensor(const TensorSource& source, std::string_view name,
                                     absl::Span<const DType> dtypes,
                                     absl::Span<const int64_t> shape);

// DATA_LOSS naming file, tensor and index of the first element that is NaN or
// infinite. Only for floating types.
absl::Status CheckFinite(const TensorSource& source, std::string_view name,
                         const TensorView& tensor);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BASE_TENSOR_H_
