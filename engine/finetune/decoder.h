// A Llama-family decoder in tensor code, for training: the dense teacher and the compressed student
// run through the same layers and differ in their linear sites.
#ifndef ULTRASKETCH_ENGINE_FINETUNE_DECODER_H_
#define ULTRASKETCH_ENGINE_FINETUNE_DECODER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include <ATen/core/Tensor.h>

#include "engine/codecs/codec.h"
#include "engine/codecs/linear_site.h"
#include "engine/finetune/decoder_functions.h"
#include "engine/format/checkpoint.h"
#include "engine/format/model_config.h"
#include "engine/models/layer_table.h"

namespace ultrasketch {

// Where and in which type a decoder computes.
struct ComputeOptions {
  at::Device device = at::kCPU;
  at::ScalarType type = at::kFloat;
};

class Decoder {
 public:
  Decoder(const ModelConfig& config, const ComputeOptions& options)
      : config_(config), options_(options) {}
  virtual ~Decoder() = default;
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;

  const ModelConfig& config() const { return config_; }
  const ComputeOptions& options() const { return options_; }

  // What one position is made of, in the compute type.
  struct Tables {
    at::Tensor embedding;  // [vocab_size, hidden_size]
    at::Tensor head;       // the same tensor where it is tied
  };
  virtual Tables CurrentTables() const = 0;

  // The residual stream [num_windows * window_tokens, hidden_size] after a layer, as its table says
  // (models/layer_table.h). The rotary tables are those of window_tokens.
  at::Tensor RunLayer(int layer, const at::Tensor& hidden, const RotaryTables& rotary,
                      int64_t num_windows) const;

  // The last norm.
  at::Tensor RunFinalNorm(const at::Tensor& hidden) const;

  // Tokens are positions 0 to window_tokens - 1 of their window.
  RotaryTables MakeRotaryTables(int64_t window_tokens) const;

  // The inputs of the head [num_tokens, hidden_size] for ids [num_windows, window_tokens] (int64,
  // on the device), all layers at once.
  at::Tensor Run(const Tables& tables, const at::Tensor& ids, const RotaryTables& rotary) const;

 protected:
  virtual at::Tensor ApplySite(int layer, SiteKind kind, const at::Tensor& x) const = 0;
  // Float; of those that the architecture has.
  virtual const at::Tensor& Vector(int layer, LayerVector which) const = 0;
  virtual const at::Tensor& FinalNorm() const = 0;

 private:
  at::Tensor Attend(int layer, const at::Tensor& qkv, const RotaryTables& rotary,
                    int64_t num_windows) const;

  const ModelConfig config_;
  const ComputeOptions options_;
};

// The dense model; nothing of it is trained. Errors are those of reading the checkpoint;
// INVALID_ARGUMENT for one that is compressed.
absl::StatusOr<std::unique_ptr<Decoder>> LoadTeacher(const Checkpoint& checkpoint,
                                                     const ComputeOptions& options);

// W' [rows, cols], float on the CPU.
at::Tensor DecodeAll(const EncodedLinear& encoded);

// The dense weights of a site [rows, cols], float on the CPU. Errors are those of Codec::Load.
absl::StatusOr<at::Tensor> ReadDenseSite(const LinearSite& site, const Checkpoint& checkpoint);

// The tensor of `size` finite values, as float on the CPU. Errors are those of GetTensor and
// CheckFinite.
absl::StatusOr<at::Tensor> ReadFloatVector(const Checkpoint& checkpoint, const std::string& name,
                                           int64_t size);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_FINETUNE_DECODER_H_
