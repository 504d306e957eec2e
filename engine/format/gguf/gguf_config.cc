#include "engine/format/gguf/gguf_config.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <numbers>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

#include "engine/base/status.h"
#include "engine/base/tensor.h"
#include "engine/format/gguf/gguf_tensors.h"

namespace ultrasketch {
namespace {

using nlohmann::ordered_json;

constexpr std::array kArchitectures = {
    // Mistral's models, too, are "llama" to llama.cpp.
    GgufArchitecture{"llama", "llama", "LlamaForCausalLM", true, false, true},
    GgufArchitecture{"qwen2", "qwen2", "Qwen2ForCausalLM", false, true, false},
    GgufArchitecture{"qwen3", "qwen3", "Qwen3ForCausalLM", false, false, false},
    // Which layers have no rotary embedding is not in the file: every fourth has none.
    GgufArchitecture{"smollm3", "smollm3", "SmolLM3ForCausalLM", true, false, true},
};

constexpr int64_t kMaxExtent = std::numeric_limits<int32_t>::max();
constexpr double kMaxTheta = 1e15;
constexpr double kMaxRopeFactor = 1e6;

// Of llama3's rotary scaling: relative to the factors of the file.
constexpr double kFactorTolerance = 1e-4;

// The number that a float was written as: 1e-05 rather than 9.99999974e-06.
double Shortest(double value) {
  char text[32];
  const auto end = std::to_chars(text, text + sizeof(text), static_cast<float>(value));
  double shortest = value;
  std::from_chars(text, end.ptr, shortest);
  return shortest;
}

// Reads keys of one architecture ("llama.block_count").
class Keys {
 public:
  Keys(const GgufFile& file, std::string_view architecture)
      : file_(file), architecture_(architecture) {}

  std::string Name(std::string_view key) const { return absl::StrCat(architecture_, ".", A(key)); }

  absl::StatusOr<int64_t> RequiredInteger(std::string_view key) const {
    US_ASSIGN_OR_RETURN(const auto value, Same(key));
    if (!value.has_value()) return file_.ValueError(Name(key), "an integer");
    return *value;
  }

  // A key whose value may be an array, for every layer one: all equal, or not supported.
  absl::StatusOr<std::optional<int64_t>> Same(std::string_view key) const {
    US_ASSIGN_OR_RETURN(const auto values, file_.Integers(Name(key), 1, kMaxExtent));
    if (!values.has_value()) return std::optional<int64_t>();
    if (values->empty()) return file_.ValueError(Name(key), "at least one integer");
    for (const int64_t value : *values) {
      if (value == values->front()) continue;
      return file_.Unsupported(Name(key), absl::StrCat("layers that differ (", values->front(),
                                                       " and ", value, ") are not supported"));
    }
    return std::optional<int64_t>(values->front());
  }

  absl::StatusOr<std::optional<double>> Number(std::string_view key, double least,
                                               double most) const {
    return file_.Number(Name(key), least, most);
  }

 private:
  const GgufFile& file_;
  const std::string architecture_;
};

// Features that would change the computation.
absl::Status RefuseUnsupported(const GgufFile& file, const Keys& keys, int64_t context,
                               int64_t head_dim) {
  US_ASSIGN_OR_RETURN(const auto experts, file.Integer(keys.Name("expert_count"), 0, kMaxExtent));
  if (experts.value_or(0) > 0) {
    return file.Unsupported(keys.Name("expert_count"), "mixtures of experts are not supported");
  }
  US_ASSIGN_OR_RETURN(const auto window,
                      file.Integer(keys.Name("attention.sliding_window"), 0, kMaxExtent));
  if (window.value_or(0) > 0 && *window < context) {
    return file.Unsupported(
        keys.Name("attention.sliding_window"),
        absl::StrCat("a sliding window of ", *window, " tokens, less than the context of ", context,
                     ", is not supported"));
  }
  for (const char* key : {"logit_scale", "residual_scale", "embedding_scale", "attention.scale",
                          "rope.scaling.attn_factor"}) {
    US_ASSIGN_OR_RETURN(const auto scale, keys.Number(key, -1e30, 1e30));
    if (!scale.has_value() || *scale == 0 || *scale == 1) continue;
    return file.Unsupported(keys.Name(key),
                            absl::StrCat("a scale of ", *scale, " is not supported; only 1 is"));
  }
  US_ASSIGN_OR_RETURN(const auto rotated, keys.Same("rope.dimension_count"));
  if (rotated.value_or(head_dim) != head_dim) {
    return file.Unsupported(keys.Name("rope.dimension_count"),
                            absl::StrCat("rotating ", *rotated, " of a head's ", head_dim,
                                         " dimensions is not supported; only all of them is"));
  }
  return absl::OkStatus();
}

struct Llama3Scaling {
  double factor = 1;
  double low_freq_factor = 1;
  double high_freq_factor = 4;
  double original_context = 8192;
};

// What llama3's scaling divides the frequency of wavelength `wavelength` by.
double Divisor(const Llama3Scaling& scaling, double wavelength) {
  if (wavelength < scaling.original_context / scaling.high_freq_factor) return 1;
  if (wavelength > scaling.original_context / scaling.low_freq_factor) return scaling.factor;
  const double kept = (scaling.original_context / wavelength - scaling.low_freq_factor) /
                      (scaling.high_freq_factor - scaling.low_freq_factor);
  return 1 / ((1 - kept) / scaling.factor + kept);
}

bool Explains(const Llama3Scaling& scaling, const std::vector<double>& wavelengths,
              const std::vector<double>& factors) {
  for (size_t i = 0; i < factors.size(); ++i) {
    const double expected = Divisor(scaling, wavelengths[i]);
    if (!(std::abs(expected - factors[i]) <= kFactorTolerance * expected)) return false;
  }
  return true;
}

// On the ramp between kept and divided frequencies, the kept part is a straight line over the
// inverse wavelength: two of its points give the two ratios that the parameters come down to.
std::optional<Llama3Scaling> FitLlama3(const std::vector<double>& wavelengths,
                                       const std::vector<double>& factors) {
  Llama3Scaling scaling;
  scaling.factor = factors.back();
  if (Explains(scaling, wavelengths, factors)) return scaling;
  const auto kept = [&](size_t i) {
    return (1 / factors[i] - 1 / scaling.factor) / (1 - 1 / scaling.factor);
  };
  std::vector<size_t> ramp;
  for (size_t i = 0; i < factors.size(); ++i) {
    if (kept(i) > 1e-3 && kept(i) < 1 - 1e-3) ramp.push_back(i);
  }
  if (ramp.size() < 2) return std::nullopt;
  const size_t first = ramp.front();
  const size_t last = ramp.back();
  const double slope =
      (kept(first) - kept(last)) / (1 / wavelengths[first] - 1 / wavelengths[last]);
  const double intercept = slope / wavelengths[first] - kept(first);
  if (!(intercept > 1e-6) || !(slope > 0) || !std::isfinite(slope)) return std::nullopt;
  scaling.high_freq_factor = std::round((1 + 1 / intercept) * 1e3) / 1e3;
  scaling.original_context = std::round(slope * (scaling.high_freq_factor - 1));
  const bool sensible = scaling.original_context >= 1 && scaling.original_context <= kMaxExtent &&
                        scaling.high_freq_factor > 1;
  if (!sensible || !Explains(scaling, wavelengths, factors)) return std::nullopt;
  return scaling;
}

// rope_scaling for the factors that frequencies are divided by; null when they are all 1.
absl::StatusOr<ordered_json> ScalingOfFactors(const GgufModel& model, const GgufTensor& tensor,
                                              double theta, int64_t head_dim) {
  const auto error = [&](absl::StatusCode code, const std::string& problem) {
    return absl::Status(
        code, absl::StrCat(model.file().path(), ": tensor ", Quoted(tensor.name), ": ", problem));
  };
  if (tensor.type->name != "F32" || tensor.shape != std::vector<int64_t>{head_dim / 2}) {
    return error(absl::StatusCode::kDataLoss,
                 absl::StrCat("expected F32 [", head_dim / 2, "], found ", A(tensor.type->name),
                              " ", ShapeString(tensor.shape)));
  }
  std::vector<double> factors;
  std::vector<double> wavelengths;
  for (int64_t i = 0; i < head_dim / 2; ++i) {
    float factor = 0;
    tensor.type->decode(tensor.data + i * tensor.type->block_bytes, &factor);
    if (!(factor >= 1 && factor <= kMaxRopeFactor)) {
      return error(absl::StatusCode::kDataLoss,
                   absl::StrCat("expected factors from 1 to ", kMaxRopeFactor, ", found ", factor,
                                " at place ", i));
    }
    factors.push_back(factor);
    wavelengths.push_back(
        2 * std::numbers::pi *
        std::pow(theta, static_cast<double>(2 * i) / static_cast<double>(head_dim)));
  }
  const auto [least, most] = std::minmax_element(factors.begin(), factors.end());
  if (*most == 1) return ordered_json();
  if (*least == *most) {
    return ordered_json{{"rope_type", "linear"}, {"factor", Shortest(*most)}};
  }
  const std::optional<Llama3Scaling> scaling = FitLlama3(wavelengths, factors);
  if (!scaling.has_value()) {
    return error(absl::StatusCode::kUnimplemented,
                 absl::StrCat("the factors are not those of a rope type that is supported: linear "
                              "or llama3; they begin with ",
                              factors.front(), " and end with ", factors.back()));
  }
  return ordered_json{
      {"rope_type", "llama3"},
      {"factor", Shortest(scaling->factor)},
      {"low_freq_factor", scaling->low_freq_factor},
      {"high_freq_factor", scaling->high_freq_factor},
      {"original_max_position_embeddings", static_cast<int64_t>(scaling->original_context)}};
}

// rope_scaling; null when there is none.
absl::StatusOr<ordered_json> MakeRopeScaling(const GgufModel& model, const Keys& keys, double theta,
                                             int64_t head_dim) {
  const GgufFile& file = model.file();
  US_ASSIGN_OR_RETURN(const auto type, file.String(keys.Name("rope.scaling.type")));
  US_ASSIGN_OR_RETURN(auto factor, keys.Number("rope.scaling.factor", 0, kMaxRopeFactor));
  if (!factor.has_value()) {
    US_ASSIGN_OR_RETURN(factor, keys.Number("rope.scale_linear", 0, kMaxRopeFactor));
  }
  if (type.has_value() && *type != "linear" && *type != "none") {
    return file.Unsupported(keys.Name("rope.scaling.type"),
                            absl::StrCat("the rope type ", Quoted(*type),
                                         " is not supported; supported are none, linear and, by ",
                                         "rope_freqs.weight, llama3"));
  }
  ordered_json scaling;
  // A factor of 0 is none.
  if (type.value_or("linear") == "linear" && factor.value_or(0) != 0 && *factor != 1) {
    scaling = {{"rope_type", "linear"}, {"factor", Shortest(*factor)}};
  }
  const GgufTensor* factors = model.Find(kRopeFactorsName);
  if (factors == nullptr) return scaling;
  US_ASSIGN_OR_RETURN(ordered_json other, ScalingOfFactors(model, *factors, theta, head_dim));
  if (other.is_null()) return scaling;
  if (!scaling.is_null()) {
    return file.Unsupported(keys.Name("rope.scaling.factor"),
                            "linear scaling together with rope_freqs.weight is not supported");
  }
  return other;
}

}  // namespace

absl::StatusOr<const GgufArchitecture*> FindGgufArchitecture(const GgufFile& file) {
  constexpr std::string_view kKey = "general.architecture";
  US_ASSIGN_OR_RETURN(const auto name, file.String(kKey));
  if (!name.has_value()) return file.ValueError(kKey, "the name of an architecture");
  std::vector<std::string> known;
  for (const GgufArchitecture& architecture : kArchitectures) {
    if (architecture.name == *name) return &architecture;
    known.emplace_back(architecture.name);
  }
  return file.Unsupported(
      kKey, absl::StrCat("the architecture ", Quoted(*name), " is not supported; supported are ",
                         absl::StrJoin(known, ", ")));
}

absl::StatusOr<ordered_json> MakeGgufConfig(const GgufModel& model,
                                            const GgufArchitecture& architecture) {
  const GgufFile& file = model.file();
  const Keys keys(file, architecture.name);
  US_ASSIGN_OR_RETURN(const int64_t hidden_size, keys.RequiredInteger("embedding_length"));
  US_ASSIGN_OR_RETURN(const int64_t intermediate_size, keys.RequiredInteger("feed_forward_length"));
  US_ASSIGN_OR_RETURN(const int64_t num_layers, keys.RequiredInteger("block_count"));
  US_ASSIGN_OR_RETURN(const int64_t context, keys.RequiredInteger("context_length"));
  US_ASSIGN_OR_RETURN(const int64_t heads, keys.RequiredInteger("attention.head_count"));
  US_ASSIGN_OR_RETURN(const auto kv_heads, keys.Same("attention.head_count_kv"));
  US_ASSIGN_OR_RETURN(const auto key_length, keys.Same("attention.key_length"));
  US_ASSIGN_OR_RETURN(const auto value_length, keys.Same("attention.value_length"));
  if (!key_length.has_value() && hidden_size % heads != 0) {
    return file.ValueError(keys.Name("attention.head_count"),
                           absl::StrCat("a divisor of embedding_length, ", hidden_size,
                                        ", as there is no ", keys.Name("attention.key_length")));
  }
  const int64_t head_dim = key_length.value_or(hidden_size / heads);
  if (value_length.value_or(head_dim) != head_dim) {
    return file.Unsupported(keys.Name("attention.value_length"),
                            absl::StrCat("values of ", *value_length, " dimensions with keys of ",
                                         head_dim, " are not supported"));
  }
  US_RETURN_IF_ERROR(RefuseUnsupported(file, keys, context, head_dim));
  US_ASSIGN_OR_RETURN(const auto epsilon,
                      keys.Number("attention.layer_norm_rms_epsilon", 1e-12, 1));
  if (!epsilon.has_value()) {
    return file.ValueError(keys.Name("attention.layer_norm_rms_epsilon"), "a number");
  }
  US_ASSIGN_OR_RETURN(const auto freq_base, keys.Number("rope.freq_base", 1, kMaxTheta));
  const double theta = Shortest(freq_base.value_or(10000));
  US_ASSIGN_OR_RETURN(ordered_json rope_scaling, MakeRopeScaling(model, keys, theta, head_dim));
  const GgufTensor* embedding = model.Find(kEmbeddingName);
  if (embedding == nullptr) {
    return absl::DataLossError(
        absl::StrCat(file.path(), ": expected a tensor ", Quoted(kEmbeddingName), ", found none"));
  }

  ordered_json config = {
      {"architectures", ordered_json::array({architecture.class_name})},
      {"model_type", architecture.model_type},
      {"vocab_size", embedding->shape.front()},
      {"hidden_size", hidden_size},
      {"intermediate_size", intermediate_size},
      {"num_hidden_layers", num_layers},
      {"num_attention_heads", heads},
      {"num_key_value_heads", kv_heads.value_or(heads)},
      {"head_dim", head_dim},
      {"max_position_embeddings", context},
      {"hidden_act", "silu"},
      {"rms_norm_eps", Shortest(*epsilon)},
      {"rope_theta", theta},
      {"rope_scaling", std::move(rope_scaling)},
      {"tie_word_embeddings", model.Find(kHeadName) == nullptr},
  };
  if (architecture.has_optional_biases) {
    config["attention_bias"] = HasAttentionBias(model);
    config["mlp_bias"] = HasMlpBias(model);
  }
  return config;
}

}  // namespace ultrasketch
