#include "engine/format/gguf/gguf_tensors.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <memory>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

#include "engine/base/check.h"
#include "engine/base/status.h"
#include "engine/base/tensor.h"

namespace ultrasketch {
namespace {

// Bytes of output that are decoded at a time.
constexpr int64_t kPieceBytes = int64_t{1} << 20;

// The linear layers of a decoder layer: names in the file and in the checkpoint.
struct LinearNames {
  std::string_view file;
  std::string_view checkpoint;
};

constexpr std::array kAttentionLinears = {
    LinearNames{"attn_q", "self_attn.q_proj"}, LinearNames{"attn_k", "self_attn.k_proj"},
    LinearNames{"attn_v", "self_attn.v_proj"}, LinearNames{"attn_output", "self_attn.o_proj"}};
constexpr std::array kMlpLinears = {LinearNames{"ffn_gate", "mlp.gate_proj"},
                                    LinearNames{"ffn_up", "mlp.up_proj"},
                                    LinearNames{"ffn_down", "mlp.down_proj"}};

template <size_t N>
bool HasBias(const GgufModel& model, const std::array<LinearNames, N>& linears) {
  return std::any_of(model.tensors().begin(), model.tensors().end(), [&](const GgufTensor* tensor) {
    return std::any_of(linears.begin(), linears.end(), [&](const LinearNames& names) {
      return tensor->name.ends_with(absl::StrCat(".", A(names.file), ".bias"));
    });
  });
}

class Mapper {
 public:
  Mapper(const GgufModel& model, const GgufArchitecture& architecture, const ModelConfig& config)
      : model_(model), architecture_(architecture), config_(config) {}

  absl::StatusOr<std::vector<GgufTensorMapping>> Map() {
    const int64_t hidden = config_.hidden_size;
    US_RETURN_IF_ERROR(
        Add(kEmbeddingName, "model.embed_tokens.weight", {config_.vocab_size, hidden}));
    US_RETURN_IF_ERROR(Add("output_norm.weight", "model.norm.weight", {hidden}));
    if (!config_.tie_word_embeddings) {
      US_RETURN_IF_ERROR(Add(kHeadName, "lm_head.weight", {config_.vocab_size, hidden}));
    }
    for (int layer = 0; layer < config_.num_layers; ++layer) US_RETURN_IF_ERROR(AddLayer(layer));
    used_.insert(std::string(kRopeFactorsName));
    for (const GgufTensor* tensor : model_.tensors()) {
      if (used_.contains(tensor->name)) continue;
      return absl::UnimplementedError(absl::StrCat(
          model_.file().path(), ": tensor ", Quoted(tensor->name, 200), ": models of architecture ",
          A(architecture_.name), " with it are not supported"));
    }
    return std::move(mappings_);
  }

 private:
  absl::Status AddLayer(int layer) {
    const int64_t hidden = config_.hidden_size;
    const int64_t inner = config_.intermediate_size;
    file_prefix_ = absl::StrCat("blk.", layer, ".");
    checkpoint_prefix_ = absl::StrCat("model.layers.", layer, ".");
    US_RETURN_IF_ERROR(AddInLayer("attn_norm.weight", "input_layernorm.weight", {hidden}));
    US_RETURN_IF_ERROR(AddInLayer("ffn_norm.weight", "post_attention_layernorm.weight", {hidden}));
    if (config_.head_norms) {
      US_RETURN_IF_ERROR(
          AddInLayer("attn_q_norm.weight", "self_attn.q_norm.weight", {config_.head_dim}));
      US_RETURN_IF_ERROR(
          AddInLayer("attn_k_norm.weight", "self_attn.k_norm.weight", {config_.head_dim}));
    }
    const bool interleaved = architecture_.interleaves_rotary_rows;
    const std::array<int64_t, 4> attention_rows = {config_.query_width(), config_.key_width(),
                                                   config_.key_width(), hidden};
    const std::array<int64_t, 4> attention_cols = {hidden, hidden, hidden, config_.query_width()};
    const std::array<int, 4> heads = {interleaved ? config_.num_attention_heads : 0,
                                      interleaved ? config_.num_kv_heads : 0, 0, 0};
    const bool is_output_biased = config_.attention_output_bias;
    for (size_t i = 0; i < kAttentionLinears.size(); ++i) {
      US_RETURN_IF_ERROR(AddLinear(kAttentionLinears[i], attention_rows[i], attention_cols[i],
                                   i < 3 ? config_.qkv_bias : is_output_biased, heads[i]));
    }
    const std::array<int64_t, 3> mlp_rows = {inner, inner, hidden};
    const std::array<int64_t, 3> mlp_cols = {hidden, hidden, inner};
    for (size_t i = 0; i < kMlpLinears.size(); ++i) {
      US_RETURN_IF_ERROR(AddLinear(kMlpLinears[i], mlp_rows[i], mlp_cols[i], config_.mlp_bias, 0));
    }
    return absl::OkStatus();
  }

  absl::Status AddLinear(const LinearNames& names, int64_t rows, int64_t cols, bool has_bias,
                         int interleaved_heads) {
    US_RETURN_IF_ERROR(AddInLayer(absl::StrCat(A(names.file), ".weight"),
                                  absl::StrCat(A(names.checkpoint), ".weight"), {rows, cols}));
    mappings_.back().interleaved_heads = interleaved_heads;
    if (!has_bias) return absl::OkStatus();
    const std::string file_name = absl::StrCat(A(names.file), ".bias");
    const std::string checkpoint_name = absl::StrCat(A(names.checkpoint), ".bias");
    if (architecture_.has_optional_biases &&
        model_.Find(absl::StrCat(file_prefix_, file_name)) == nullptr) {
      mappings_.push_back({absl::StrCat(checkpoint_prefix_, checkpoint_name), {rows}});
      return absl::OkStatus();
    }
    US_RETURN_IF_ERROR(AddInLayer(file_name, checkpoint_name, {rows}));
    mappings_.back().interleaved_heads = interleaved_heads;
    return absl::OkStatus();
  }

  absl::Status AddInLayer(std::string_view file_name, std::string_view checkpoint_name,
                          std::vector<int64_t> shape) {
    return Add(absl::StrCat(file_prefix_, A(file_name)),
               absl::StrCat(checkpoint_prefix_, A(checkpoint_name)), std::move(shape));
  }

  absl::Status Add(std::string_view file_name, std::string checkpoint_name,
                   std::vector<int64_t> shape) {
    const GgufTensor* tensor = model_.Find(file_name);
    const std::string what =
        absl::StrCat(model_.file().path(), ": tensor ", Quoted(file_name, 200), ": ");
    if (tensor == nullptr) {
      return absl::DataLossError(
          absl::StrCat(what, "expected one of ", ShapeString(shape), ", found none"));
    }
    if (tensor->shape != shape) {
      return absl::DataLossError(absl::StrCat(what, "expected ", ShapeString(shape), ", found ",
                                              ShapeString(tensor->shape)));
    }
    if (tensor->type->decode == nullptr) {
      return absl::UnimplementedError(absl::StrCat(what, "the type ", A(tensor->type->name),
                                                   " is not supported; supported are ",
                                                   SupportedGgmlTypes()));
    }
    used_.insert(tensor->name);
    mappings_.push_back({std::move(checkpoint_name), std::move(shape), tensor});
    return absl::OkStatus();
  }

  const GgufModel& model_;
  const GgufArchitecture& architecture_;
  const ModelConfig& config_;
  std::string file_prefix_;
  std::string checkpoint_prefix_;
  absl::flat_hash_set<std::string> used_;
  std::vector<GgufTensorMapping> mappings_;
};

// Appends `values` to `bytes` as `dtype`. Returns the index of the first that is not finite, before
// or afterwards; -1 when all are.
int64_t AppendAs(DType dtype, const std::vector<float>& values, std::vector<uint8_t>* bytes) {
  const size_t begin = bytes->size();
  bytes->resize(begin + values.size() * static_cast<size_t>(ElementBytes(dtype)));
  uint8_t* out = bytes->data() + begin;
  for (size_t i = 0; i < values.size(); ++i) {
    float stored = values[i];
    if (dtype == DType::kF32) {
      std::memcpy(out + i * sizeof(float), &stored, sizeof(float));
    } else {
      const uint16_t bits = dtype == DType::kF16 ? FloatToHalf(stored) : FloatToBf16(stored);
      std::memcpy(out + i * sizeof(bits), &bits, sizeof(bits));
      stored = dtype == DType::kF16 ? HalfToFloat(bits) : Bf16ToFloat(bits);
    }
    if (!std::isfinite(stored)) return static_cast<int64_t>(i);
  }
  return -1;
}

// The bytes of all tensors that are being written, for the progress of the whole.
struct Progress {
  int64_t done = 0;
  int64_t total = 0;
};

// Appends a tensor's values, row by row in the checkpoint's order.
absl::Status Produce(const std::string& path, const GgufTensorMapping& mapping, DType dtype,
                     const GgufConversion& conversion, Progress& progress,
                     TensorToWrite::Append append) {
  const bool is_vector = mapping.shape.size() == 1;
  // Values that move together when rows do.
  const int64_t cols = is_vector && mapping.interleaved_heads > 0 ? 1 : mapping.shape.back();
  const int64_t rows = (is_vector ? mapping.shape[0] : mapping.shape[0] * mapping.shape[1]) / cols;
  const int64_t head_rows = mapping.interleaved_heads > 0 ? rows / mapping.interleaved_heads : rows;
  std::vector<uint8_t> bytes;
  std::vector<float> values;
  const auto flush = [&]() -> absl::Status {
    if (conversion.cancelled != nullptr && conversion.cancelled->load(std::memory_order_relaxed)) {
      return absl::CancelledError("the import was cancelled");
    }
    US_RETURN_IF_ERROR(append(bytes.data(), static_cast<int64_t>(bytes.size())));
    progress.done += static_cast<int64_t>(bytes.size());
    if (conversion.progress) conversion.progress(progress.done, progress.total);
    bytes.clear();
    return absl::OkStatus();
  };
  for (int64_t row = 0; row < rows; ++row) {
    // The second half of a head's rows are the second ones of its rotated pairs.
    int64_t source_row = row;
    if (mapping.interleaved_heads > 0) {
      const int64_t place = row % head_rows;
      const int64_t half = head_rows / 2;
      source_row = row - place + (place % half) * 2 + place / half;
    }
    values.assign(static_cast<size_t>(cols), 0.0f);
    if (mapping.source != nullptr) {
      const GgmlType& type = *mapping.source->type;
      const int64_t blocks = cols / type.block_elements;
      const uint8_t* block = mapping.source->data + source_row * blocks * type.block_bytes;
      for (int64_t i = 0; i < blocks; ++i) {
        type.decode(block + i * type.block_bytes, values.data() + i * type.block_elements);
      }
    }
    if (const int64_t wrong = AppendAs(dtype, values, &bytes); wrong >= 0) {
      const float value = values[static_cast<size_t>(wrong)];
      const std::string what = absl::StrCat(path, ": tensor ", Quoted(mapping.source->name, 200),
                                            ": element ", source_row * cols + wrong, ": ");
      if (!std::isfinite(value)) {
        return absl::DataLossError(absl::StrCat(what, "expected a finite number, found ", value));
      }
      return absl::OutOfRangeError(absl::StrCat(what, value, " is beyond the range of ",
                                                A(DTypeName(dtype)), "; BF16 and F32 hold more"));
    }
    if (static_cast<int64_t>(bytes.size()) >= kPieceBytes) US_RETURN_IF_ERROR(flush());
  }
  return flush();
}

}  // namespace

bool HasAttentionBias(const GgufModel& model) { return HasBias(model, kAttentionLinears); }
bool HasMlpBias(const GgufModel& model) { return HasBias(model, kMlpLinears); }

absl::StatusOr<std::vector<GgufTensorMapping>> MapGgufTensors(const GgufModel& model,
                                                              const GgufArchitecture& architecture,
                                                              const ModelConfig& config) {
  return Mapper(model, architecture, config).Map();
}

DType OutputDType(const GgmlType& type, std::optional<DType> wanted) {
  if (wanted.has_value()) return *wanted;
  if (type.name == "F32") return DType::kF32;
  if (type.name == "BF16") return DType::kBF16;
  return DType::kF16;
}

std::vector<TensorToWrite> ConvertGgufTensors(const GgufModel& model,
                                              const std::vector<GgufTensorMapping>& mappings,
                                              const GgufConversion& conversion) {
  const auto progress = std::make_shared<Progress>();
  std::vector<TensorToWrite> tensors;
  for (const GgufTensorMapping& mapping : mappings) {
    TensorToWrite tensor;
    tensor.name = mapping.name;
    tensor.shape = mapping.shape;
    tensor.dtype = mapping.source == nullptr ? conversion.dtype.value_or(DType::kF32)
                                             : OutputDType(*mapping.source->type, conversion.dtype);
    int64_t bytes = ElementBytes(tensor.dtype);
    for (const int64_t extent : tensor.shape) bytes *= extent;
    progress->total += bytes;
    const std::string& path = model.file().path();
    tensor.produce = [path, mapping, dtype = tensor.dtype, conversion, progress](auto append) {
      return Produce(path, mapping, dtype, conversion, *progress, append);
    };
    tensors.push_back(std::move(tensor));
  }
  return tensors;
}

}  // namespace ultrasketch
