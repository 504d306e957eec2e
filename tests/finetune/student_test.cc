// What is trained is what is served: the trainer's forward pass against the serving engine.
#include "engine/finetune/student.h"

#include <cmath>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/codecs/grouped/quantize_table.h"
#include "engine/compress/accounting.h"
#include "engine/compress/evaluate.h"
#include "engine/finetune/parameter_store.h"
#include "engine/finetune/perplexity.h"
#include "engine/finetune/table_rounding.h"
#include "engine/models/vocabulary_tables.h"
#include "tests/finetune/tiny_pair.h"
#include "tests/finetune/torch_examples.h"

namespace ultrasketch {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kNumTokens = 50;

at::Tensor TrainerLogits(const Decoder& decoder, const std::vector<int32_t>& ids) {
  const at::NoGradGuard no_gradient;
  const Decoder::Tables tables = decoder.CurrentTables();
  at::Tensor tokens = at::empty({1, static_cast<int64_t>(ids.size())}, at::kLong);
  for (size_t i = 0; i < ids.size(); ++i) tokens.data_ptr<int64_t>()[i] = ids[i];
  return decoder.Run(tables, tokens, decoder.MakeRotaryTables(tokens.size(1)))
      .mm(tables.head.t())
      .to(at::kFloat);
}

at::Tensor ServedLogits(const std::string& folder, const std::vector<int32_t>& ids) {
  const auto model = MustLoadModel(folder, 2, {.kv_cache_type = KvCacheType::kFp32});
  const std::vector<std::vector<float>> rows = AllLogits(*model, ids);
  at::Tensor logits = at::empty(
      {static_cast<int64_t>(rows.size()), static_cast<int64_t>(rows.front().size())}, at::kFloat);
  for (size_t row = 0; row < rows.size(); ++row) {
    std::copy(rows[row].begin(), rows[row].end(),
              logits.data_ptr<float>() + static_cast<int64_t>(row) * logits.size(1));
  }
  return logits;
}

// Moves every parameter as a long training would, so that bits and levels change.
void Perturb(Student& student) {
  const at::NoGradGuard no_gradient;
  const ParameterStore& store = student.parameters();
  int64_t first = 0;
  for (const auto& [name, size] : store.Layout()) {
    const bool latent = name.find(".latent") != std::string::npos;
    store.values()
        .narrow(0, first, size)
        .add_(RandomTensor({size}, static_cast<uint64_t>(first) + 1), latent ? 0.5 : 0.05);
    first += (size + 63) / 64 * 64;
  }
  student.ClampLatents();
}

struct StoredTensor {
  std::string name;
  DType dtype;
  std::vector<int64_t> shape;
  friend bool operator==(const StoredTensor&, const StoredTensor&) = default;
};

std::string Bytes(const TensorView& view) {
  return {reinterpret_cast<const char*>(view.data),
          static_cast<size_t>(view.num_elements() * ElementBytes(view.dtype))};
}

std::vector<StoredTensor> StoredTensors(const Checkpoint& checkpoint) {
  std::vector<StoredTensor> tensors;
  for (const std::string& name : checkpoint.tensor_names()) {
    tensors.push_back({name, checkpoint.Find(name)->dtype, checkpoint.Find(name)->shape});
  }
  return tensors;
}

struct Variation {
  std::string name;
  std::string config;
  TinyCodec codec;
  std::string table;
  bool sketch_all = false;
};

std::ostream& operator<<(std::ostream& out, const Variation& variation) {
  return out << variation.name;
}

class ServedTest : public testing::TestWithParam<Variation> {};

TEST_P(ServedTest, TheExportedModelGivesTheTrainersLogitsAtTheStudentsSize) {
  const TinyPair pair(nlohmann::json::parse(GetParam().config), GetParam().codec, GetParam().table);
  StudentOptions options;
  if (GetParam().sketch_all) options.sketch_gradient = SketchGradient::kAll;
  auto student = Student::Load(pair.OpenStudent(), pair.OpenTeacher(), options);
  ASSERT_TRUE(student.ok()) << student.status();
  const std::vector<int32_t> ids = RandomTokens(kNumTokens, 61, 5);
  const at::Tensor before = TrainerLogits(**student, ids);
  if (!GetParam().sketch_all) {
    EXPECT_LT(RelativeError(before, ServedLogits(pair.student(), ids)), 1e-2);
  }

  Perturb(**student);
  const TemporaryFolder folder;
  ThreadPool pool(1);
  const absl::Status exported = (*student)->Export(folder.File("out"), false, pool);
  ASSERT_TRUE(exported.ok()) << exported;
  const at::Tensor after = TrainerLogits(**student, ids);
  EXPECT_LT(RelativeError(after, ServedLogits(folder.File("out"), ids)), 1e-2);
  EXPECT_GT(RelativeError(after, before), 0.1);

  const auto written = Checkpoint::Open(folder.File("out"));
  ASSERT_TRUE(written.ok()) << written.status();
  EXPECT_TRUE(StoredTensors(**written) == StoredTensors(*pair.OpenStudent()));
  EXPECT_EQ((*written)->config().quantization_config,
            pair.OpenStudent()->config().quantization_config);
  EXPECT_EQ(MeasureModel(**written)->bits_per_weight_linear,
            MeasureModel(*pair.OpenStudent())->bits_per_weight_linear);

  // The same perplexity, of whole windows and a shorter last one.
  const std::vector<int32_t> text = RandomTokens(3 * 16 + 9, 61, 6);
  EvaluateOptions evaluate_options;
  evaluate_options.context = 16;
  const auto evaluation = EvaluateCheckpoint(*written, "cpu", text, evaluate_options);
  ASSERT_TRUE(evaluation.ok()) << evaluation.status();
  const auto perplexity =
      Perplexity(**student, std::vector<int64_t>(text.begin(), text.end()),
                 {.window_tokens = 16, .windows_at_once = 2, .progress = nullptr});
  ASSERT_TRUE(perplexity.ok()) << perplexity.status();
  EXPECT_NEAR(std::log(*perplexity), evaluation->nll, 1e-2 * evaluation->nll);
}

INSTANTIATE_TEST_SUITE_P(
    AllCodecs, ServedTest,
    testing::Values(
        Variation{"Fold", "{}", TinyCodec::kFold, "int8"},
        Variation{"FoldInPlanes", "{}", TinyCodec::kFoldPlanes, "keep"},
        Variation{"AbsMaxMin", "{}", TinyCodec::kAbsMaxMin, "int8"},
        Variation{"AbsMaxMinToAll", "{}", TinyCodec::kAbsMaxMin, "int4", true},
        Variation{"Qwen2", R"({"model_type": "qwen2", "tie_word_embeddings": false})",
                  TinyCodec::kFold, "int4"},
        Variation{"Qwen2AbsMaxMin", R"({"model_type": "qwen2", "tie_word_embeddings": false})",
                  TinyCodec::kAbsMaxMin, "keep"},
        Variation{"Qwen3", R"({"model_type": "qwen3", "head_dim": 24})", TinyCodec::kFold, "int8"},
        Variation{"SmolLm3", R"({"model_type": "smollm3", "no_rope_layers": [1, 0]})",
                  TinyCodec::kAbsMaxMin, "int8"},
        Variation{"Llama3Rotary",
                  R"({"hidden_size": 48, "head_dim": 16, "num_key_value_heads": 1,
                   "mlp_bias": true, "attention_bias": true,
                   "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                    "high_freq_factor": 4.0,
                                    "original_max_position_embeddings": 16}})",
                  TinyCodec::kFold, "int8"}),
    [](const testing::TestParamInfo<Variation>& variation) { return variation.param.name; });

TEST(StudentTest, StartsAsTheStudentItWasGiven) {
  for (const TinyCodec codec : {TinyCodec::kFold, TinyCodec::kFoldPlanes, TinyCodec::kAbsMaxMin}) {
    const TinyPair pair(nlohmann::json::object(), codec);
    auto student = Student::Load(pair.OpenStudent(), pair.OpenTeacher(), {});
    ASSERT_TRUE(student.ok()) << student.status();
    const TemporaryFolder folder;
    ThreadPool pool(1);
    ASSERT_TRUE((*student)->Export(folder.File("out"), false, pool).ok());
    const auto written = *Checkpoint::Open(folder.File("out"));
    const auto given = pair.OpenStudent();
    for (const std::string& name : given->tensor_names()) {
      // Scales are rounded once more.
      EXPECT_TRUE(name.ends_with(".scale") ||
                  Bytes(*written->Find(name)) == Bytes(*given->Find(name)))
          << name;
    }
  }
}

TEST(StudentTest, RefusesModelsThatDoNotBelongTogether) {
  const TinyPair pair(nlohmann::json::object(), TinyCodec::kFold);
  const TinyPair other({{"intermediate_size", 64}}, TinyCodec::kFold);
  const auto message = [](const absl::Status& status) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_THAT(message(LoadTeacher(*pair.OpenStudent(), {}).status()), HasSubstr("compressed"));
  EXPECT_THAT(message(Student::Load(pair.OpenTeacher(), pair.OpenTeacher(), {}).status()),
              HasSubstr("expected a model in the codec fold or absmaxmin"));
  EXPECT_THAT(message(Student::Load(pair.OpenStudent(), other.OpenTeacher(), {}).status()),
              HasSubstr("is not a compressed form of"));
}

TEST(StudentTest, TheTeachersLogitsAreThoseServed) {
  const TinyPair pair({{"model_type", "qwen2"}, {"tie_word_embeddings", false}}, TinyCodec::kFold);
  const auto teacher = LoadTeacher(*pair.OpenTeacher(), {});
  ASSERT_TRUE(teacher.ok()) << teacher.status();
  const std::vector<int32_t> ids = RandomTokens(kNumTokens, 61, 7);
  EXPECT_LT(RelativeError(TrainerLogits(**teacher, ids), ServedLogits(pair.teacher(), ids)), 1e-2);
}

TEST(TableRoundingTest, GivesWhatIsStored) {
  for (const int64_t cols : {40, 64, 130}) {
    at::Tensor table = RandomTensor({9, cols}, 8);
    table[3].zero_();
    table[4].mul_(1e-4);
    class Source : public EncodedLinear {
     public:
      explicit Source(const at::Tensor& values)
          : values_(values), site_(LoneSite(9, values.size(1))) {}
      const LinearSite& site() const override { return site_; }
      std::string_view codec_name() const override { return "test"; }
      void DecodeRows(int64_t first_row, int64_t num_rows, float* out) const override {
        const float* begin = values_.data_ptr<float>() + first_row * site_.cols;
        std::copy(begin, begin + num_rows * site_.cols, out);
      }
      std::vector<NamedTensor> StoredTensors() const override { return {}; }
      std::unique_ptr<CpuLinear> PackForCpu() const override { return nullptr; }

     private:
      at::Tensor values_;
      LinearSite site_;
    };
    for (const GroupedType type : {GroupedType::kInt8, GroupedType::kInt4}) {
      ThreadPool pool(1);
      const at::Tensor stored = DecodeAll(*QuantizeTable(Source(table), type, pool));
      const at::Tensor rounded = RoundToGroups(table, type);
      EXPECT_LT(RelativeError(rounded, stored), type == GroupedType::kInt8 ? 1e-6 : 1e-2);
    }
  }
}

TEST(ParameterStoreTest, TakesAdamsSteps) {
  at::Tensor latent = RandomTensor({3, 5}, 1);
  at::Tensor scale = RandomTensor({70}, 2);
  const std::vector<float> start = ToVector(scale);
  ParameterStore store;
  store.Add(ParameterGroup::kContinuous, "scale", &scale);
  store.Add(ParameterGroup::kLatents, "latent", &latent);
  store.Finish(at::kCPU);
  EXPECT_EQ(store.Layout()[0].first, "latent");
  EXPECT_EQ(store.GroupSize(ParameterGroup::kContinuous), 70);
  EXPECT_EQ(store.GroupSize(ParameterGroup::kTables), 0);
  store.learning_rates().copy_(at::tensor(std::vector<float>{0, 0.01f, 0}));
  AdamOptions options;
  double value = start[9], first = 0, second = 0;
  for (int step = 1; step <= 3; ++step) {
    store.gradients().zero_();
    scale.mutable_grad().fill_(0.1);
    scale.mutable_grad()[9] = 2.0 * step;
    const at::Tensor norm = store.Step(options);
    const double length = std::sqrt(69 * 0.01 + 4.0 * step * step);
    EXPECT_NEAR(norm.item<double>(), length, 1e-5);
    const double gradient = 2.0 * step / std::max(1.0, length);
    first = 0.9 * first + 0.1 * gradient;
    second = 0.95 * second + 0.05 * gradient * gradient;
    value -= 0.01 * first / (1 - std::pow(0.9, step)) /
             (std::sqrt(second / (1 - std::pow(0.95, step))) + 1e-8);
    EXPECT_NEAR(scale[9].item<double>(), value, 1e-5);
  }
  EXPECT_TRUE(at::equal(latent, RandomTensor({3, 5}, 1)));

  // Not finite: nothing moves.
  const at::Tensor before = store.values().clone();
  const at::Tensor moments = store.second_moments().clone();
  scale.mutable_grad()[0] = INFINITY;
  store.Step(options);
  EXPECT_TRUE(at::equal(store.values(), before));
  EXPECT_TRUE(at::equal(store.second_moments(), moments));
  EXPECT_EQ(store.num_steps().item<double>(), 3);
}

}  // namespace
}  // namespace ultrasketch
