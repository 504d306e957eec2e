#include "tests/models/reference_decoder.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>

namespace ultrasketch {
namespace {

using Vector = std::vector<double>;

class Reference {
 public:
  explicit Reference(const TinyModel& model)
      : model_(model), config_(model.Parsed()), layers_(static_cast<size_t>(config_.num_layers)) {}

  // Logits of the next token of the sequence.
  Vector Next(int32_t id) {
    const auto width = static_cast<size_t>(config_.hidden_size);
    const std::vector<float>& table = model_.values("model.embed_tokens.weight");
    Vector hidden(width);
    for (size_t i = 0; i < width; ++i) hidden[i] = table[static_cast<size_t>(id) * width + i];
    for (int layer = 0; layer < config_.num_layers; ++layer) {
      const std::string prefix = "model.layers." + std::to_string(layer) + ".";
      Add(hidden,
          Attention(layer, prefix + "self_attn.", Norm(hidden, prefix + "input_layernorm.weight")));
      Add(hidden, Mlp(prefix + "mlp.", Norm(hidden, prefix + "post_attention_layernorm.weight")));
    }
    ++position_;
    const Vector normed = Norm(hidden, "model.norm.weight");
    const bool tied = config_.tie_word_embeddings;
    return Product(tied ? "model.embed_tokens.weight" : "lm_head.weight", normed);
  }

 private:
  struct Cache {
    std::vector<Vector> keys;
    std::vector<Vector> values;
  };

  static void Add(Vector& to, const Vector& what) {
    for (size_t i = 0; i < to.size(); ++i) to[i] += what[i];
  }

  Vector Norm(const Vector& x, const std::string& name) const {
    double squares = 0;
    for (const double value : x) squares += value * value;
    const double mean = squares / static_cast<double>(x.size());
    const std::vector<float>& weight = model_.values(name);
    Vector result(x.size());
    for (size_t i = 0; i < x.size(); ++i) {
      result[i] = x[i] / std::sqrt(mean + double{config_.rms_norm_eps}) * double{weight[i]};
    }
    return result;
  }

  Vector Product(const std::string& name, const Vector& x) const {
    const std::vector<float>& weight = model_.values(name);
    Vector result(weight.size() / x.size(), 0.0);
    for (size_t row = 0; row < result.size(); ++row) {
      for (size_t i = 0; i < x.size(); ++i) {
        result[row] += double{weight[row * x.size() + i]} * x[i];
      }
    }
    return result;
  }

  // A bias is there exactly when the checkpoint stores one.
  Vector Linear(const std::string& name, const Vector& x) const {
    Vector result = Product(name + ".weight", x);
    const auto bias = model_.tensors.find(name + ".bias");
    if (bias != model_.tensors.end()) {
      for (size_t i = 0; i < result.size(); ++i) result[i] += double{bias->second.values[i]};
    }
    return result;
  }

  double Frequency(int pair) const {
    const RopeConfig& rope = config_.rope;
    const double base = std::pow(rope.theta, -2.0 * pair / config_.head_dim);
    if (rope.type == RopeType::kDefault) return base;
    if (rope.type == RopeType::kLinear) return base / rope.factor;
    // Llama 3.1: how many turns a pair makes over the original context decides.
    const double turns =
        static_cast<double>(rope.original_max_position_embeddings) * base / (2 * std::numbers::pi);
    if (turns < rope.low_freq_factor) return base / rope.factor;
    if (turns > rope.high_freq_factor) return base;
    const double kept =
        (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
    return (1 - kept) * base / rope.factor + kept * base;
  }

  // Element i of the first half and element i of the second are a complex number.
  void Rotate(double* head) const {
    const int half = config_.head_dim / 2;
    for (int i = 0; i < half; ++i) {
      const double angle = static_cast<double>(position_) * Frequency(i);
      const double a = head[i];
      const double b = head[i + half];
      head[i] = a * std::cos(angle) - b * std::sin(angle);
      head[i + half] = a * std::sin(angle) + b * std::cos(angle);
    }
  }

  // Normalizes the heads when the checkpoint has a norm for them, and rotates them in layers that
  // do.
  void PrepareHeads(int layer, const std::string& norm, Vector& heads) const {
    const auto head_dim = static_cast<std::ptrdiff_t>(config_.head_dim);
    for (auto head = heads.begin(); head != heads.end(); head += head_dim) {
      if (model_.tensors.contains(norm)) {
        const Vector normed = Norm(Vector(head, head + head_dim), norm);
        std::copy(normed.begin(), normed.end(), head);
      }
      if (config_.has_rope(layer)) Rotate(&*head);
    }
  }

  Vector Attention(int layer, const std::string& prefix, const Vector& x) {
    Vector queries = Linear(prefix + "q_proj", x);
    Vector keys = Linear(prefix + "k_proj", x);
    const auto head_dim = static_cast<size_t>(config_.head_dim);
    PrepareHeads(layer, prefix + "q_norm.weight", queries);
    PrepareHeads(layer, prefix + "k_norm.weight", keys);
    Cache& cache = layers_[static_cast<size_t>(layer)];
    cache.keys.push_back(keys);
    cache.values.push_back(Linear(prefix + "v_proj", x));

    Vector attended(queries.size(), 0.0);
    for (int head = 0; head < config_.num_attention_heads; ++head) {
      const size_t query = static_cast<size_t>(head) * head_dim;
      const int kv_head = head / (config_.num_attention_heads / config_.num_kv_heads);
      const size_t key = static_cast<size_t>(kv_head) * head_dim;
      Vector weights;
      for (const Vector& past : cache.keys) {
        double score = 0;
        for (size_t d = 0; d < head_dim; ++d) score += queries[query + d] * past[key + d];
        weights.push_back(score / std::sqrt(static_cast<double>(head_dim)));
      }
      const double largest = *std::max_element(weights.begin(), weights.end());
      double total = 0;
      for (double& weight : weights) total += weight = std::exp(weight - largest);
      for (size_t past = 0; past < weights.size(); ++past) {
        for (size_t d = 0; d < head_dim; ++d) {
          attended[query + d] += weights[past] / total * cache.values[past][key + d];
        }
      }
    }
    return Linear(prefix + "o_proj", attended);
  }

  Vector Mlp(const std::string& prefix, const Vector& x) const {
    Vector gate = Linear(prefix + "gate_proj", x);
    const Vector up = Linear(prefix + "up_proj", x);
    for (size_t i = 0; i < gate.size(); ++i) gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
    return Linear(prefix + "down_proj", gate);
  }

  const TinyModel& model_;
  ModelConfig config_;
  std::vector<Cache> layers_;
  int64_t position_ = 0;
};

}  // namespace

std::vector<std::vector<double>> ReferenceLogits(const TinyModel& model,
                                                 const std::vector<int32_t>& ids) {
  Reference reference(model);
  std::vector<std::vector<double>> logits;
  for (const int32_t id : ids) logits.push_back(reference.Next(id));
  return logits;
}

}  // namespace ultrasketch
