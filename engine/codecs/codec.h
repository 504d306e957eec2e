// How the weights of a linear site are represented: the seam between codecs and everything else.
//
// To be loaded and served a new codec is a folder that implements Codec and EncodedLinear, one line
// in registry.cc and one in CMakeLists.txt; on GPUs likewise its cuda/ folder (cuda/cuda_codec.h).
// What encodes it (engine/compress) and trains it (engine/finetune) names the codecs it knows.
#ifndef ULTRASKETCH_ENGINE_CODECS_CODEC_H_
#define ULTRASKETCH_ENGINE_CODECS_CODEC_H_

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "nlohmann/json_fwd.hpp"

#include "engine/base/tensor.h"
#include "engine/codecs/cpu_linear.h"
#include "engine/codecs/linear_site.h"

namespace ultrasketch {

// A site's weights W' in a codec's canonical (on-disk) form: validated, immutable, thread-safe. It
// refers to the memory of the source it was loaded from or owns what an encoder made.
class EncodedLinear {
 public:
  virtual ~EncodedLinear() = default;

  virtual const LinearSite& site() const = 0;

  // The registry's name of the codec.
  virtual std::string_view codec_name() const = 0;

  // The reference decode: rows [first_row, first_row + num_rows) of W' to `out`, row-major
  // [num_rows, cols]. Every kernel is tested against it.
  virtual void DecodeRows(int64_t first_row, int64_t num_rows, float* out) const = 0;

  // What is stored: names in full ("model.layers.0.mlp_input.bits"), canonical order. The bytes of
  // these tensors are what bits per weight (linear) counts.
  virtual std::vector<NamedTensor> StoredTensors() const = 0;

  // Packs for the CPU's kernels. The result may refer to this object, which must outlive it.
  virtual std::unique_ptr<CpuLinear> PackForCpu() const = 0;

  int64_t stored_bytes() const;

  // Of the stored bytes, those that are in this process's memory now.
  int64_t resident_bytes() const;
};

class Codec {
 public:
  virtual ~Codec() = default;

  virtual std::string_view name() const = 0;

  // Reads and validates a site's tensors. `parameters` is the checkpoint's quantization_config
  // (null for an uncompressed one). NOT_FOUND for an absent tensor, DATA_LOSS for anything that
  // does not add up, naming file, tensor, expected and found: after a successful Load no kernel can
  // fail. `source` must outlive the result.
  virtual absl::StatusOr<std::unique_ptr<EncodedLinear>> Load(
      const LinearSite& site, const TensorSource& source,
      const nlohmann::json& parameters) const = 0;
};

// Null when there is no codec of that name.
const Codec* FindCodec(std::string_view name);

// All names, sorted.
std::vector<std::string_view> CodecNames();

// Biases of the site's members [rows], zero where a member has none; empty when none has one.
absl::StatusOr<std::vector<float>> LoadBias(const LinearSite& site, const TensorSource& source);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_CODECS_CODEC_H_
