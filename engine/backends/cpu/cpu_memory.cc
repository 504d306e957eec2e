#include "engine/backends/cpu/cpu_memory.h"

#include "absl/strings/str_cat.h"
#include <sys/mman.h>

#include "engine/backends/cpu/available_memory.h"
#include "engine/base/check.h"
#include "engine/base/strings.h"

namespace ultrasketch {

absl::StatusOr<std::unique_ptr<CpuBuffer>> CpuBuffer::Allocate(int64_t num_bytes) {
  US_CHECK(num_bytes >= 0);
  const int64_t available = AvailableMemoryBytes();
  void* data = MAP_FAILED;
  if (num_bytes <= available) {
    data = mmap(nullptr, static_cast<size_t>(num_bytes == 0 ? 1 : num_bytes),
                PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  }
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "memory: ", num_bytes, " bytes (", HumanBytes(static_cast<double>(num_bytes)), ") needed, ",
        available, " bytes (", HumanBytes(static_cast<double>(available)), ") available"));
  }
  return std::unique_ptr<CpuBuffer>(new CpuBuffer(data, num_bytes));
}

CpuBuffer::~CpuBuffer() { munmap(data_, static_cast<size_t>(num_bytes_ == 0 ? 1 : num_bytes_)); }

CpuEmbedding::CpuEmbedding(TensorView table) : table_(std::move(table)) {
  const DenseKernels& kernels = GetDenseKernels();
  switch (table_.dtype) {
    case DType::kF32:
      multiply_ = kernels.multiply_f32;
      break;
    case DType::kBF16:
      multiply_ = kernels.multiply_bf16;
      break;
    case DType::kF16:
      multiply_ = kernels.multiply_f16;
      break;
    default:
      US_CHECK(false && "an embedding is F32, BF16 or F16");
  }
}

void CpuEmbedding::CopyRow(int64_t row, float* out) const {
  CopyToFloat(table_, row * hidden_size(), hidden_size(), out);
}

void CpuEmbedding::Multiply(const float* x, int64_t num_tokens, int64_t first_row, int64_t last_row,
                            float* logits) const {
  const int64_t row_bytes = hidden_size() * ElementBytes(table_.dtype);
  multiply_(table_.data + first_row * row_bytes, last_row - first_row, hidden_size(), x,
            hidden_size(), num_tokens, /*accumulate=*/false, logits + first_row, vocab_size());
}

}  // namespace ultrasketch
