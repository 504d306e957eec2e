// The linear sites of a decoder: the matrices of a layer that read the same input are one site, and
// are stored and multiplied as one matrix.
#ifndef ULTRASKETCH_ENGINE_CODECS_LINEAR_SITE_H_
#define ULTRASKETCH_ENGINE_CODECS_LINEAR_SITE_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace ultrasketch {

enum class SiteKind : uint8_t {
  kAttentionInput,   // q, k, v
  kAttentionOutput,  // o; writes to the residual stream
  kMlpInput,         // gate, up
  kMlpOutput,        // down; writes to the residual stream
};

inline constexpr int kNumSiteKinds = 4;

// "attention_input", "attention_output", "mlp_input", "mlp_output".
std::string_view SiteKindName(SiteKind kind);

// One matrix of the original checkpoint: `rows` consecutive output rows of its site.
struct SiteMember {
  std::string name;  // "model.layers.0.self_attn.q_proj": ".weight" and ".bias" follow
  int64_t rows = 0;
  bool has_bias = false;
};

// y = W x with W [rows, cols]; the members' rows follow each other in order.
struct LinearSite {
  std::string name;  // "model.layers.0.attention_input": prefix of the encoded tensors' names
  SiteKind kind = SiteKind::kAttentionInput;
  int layer = 0;
  int64_t rows = 0;
  int64_t cols = 0;
  std::vector<SiteMember> members;

  int64_t num_weights() const { return rows * cols; }
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_CODECS_LINEAR_SITE_H_
