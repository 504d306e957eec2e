// Gradients of the trainer's functions against differences of what they compute.
#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "engine/finetune/decoder_functions.h"
#include "engine/finetune/distillation.h"
#include "engine/finetune/parameter_store.h"
#include "engine/finetune/student.h"
#include "engine/finetune/trainable_site.h"
#include "tests/finetune/tiny_pair.h"
#include "tests/finetune/torch_examples.h"

namespace ultrasketch {
namespace {

using Inputs = std::vector<at::Tensor>;

// Central differences of `loss` in the element `index` of `values`.
double Difference(const at::Tensor& values, int64_t index, double step,
                  const std::function<double()>& loss) {
  const at::NoGradGuard no_gradient;
  float& value = values.data_ptr<float>()[index];
  const float before = value;
  value = static_cast<float>(before + step);
  const double above = loss();
  value = static_cast<float>(before - step);
  const double below = loss();
  value = before;
  return (above - below) / (2 * step);
}

// Of a weighted sum of the function's outputs, with respect to all elements of all inputs.
void ExpectGradients(const std::function<at::Tensor(const Inputs&)>& function, Inputs inputs) {
  for (at::Tensor& input : inputs) input = input.contiguous().requires_grad_(true);
  const at::Tensor output = function(inputs);
  const at::Tensor weights = RandomTensor(output.sizes().vec(), 99);
  torch::autograd::backward({(output * weights).sum()}, {});
  const auto loss = [&] {
    return (function(inputs).detach().to(at::kDouble) * weights).sum().item<double>();
  };
  for (size_t which = 0; which < inputs.size(); ++which) {
    ASSERT_TRUE(inputs[which].grad().defined()) << "input " << which;
    const std::vector<float> gradient = ToVector(inputs[which].grad());
    const double largest = inputs[which].grad().abs().max().item<double>();
    EXPECT_GT(largest, 0) << "input " << which;
    for (int64_t i = 0; i < inputs[which].numel(); ++i) {
      ASSERT_NEAR(gradient[static_cast<size_t>(i)], Difference(inputs[which], i, 1e-2, loss),
                  2e-3 * largest)
          << "input " << which << ", element " << i;
    }
  }
}

TEST(GradientsTest, RmsNorm) {
  ExpectGradients([](const Inputs& in) { return RmsNorm(in[0], in[1], 1e-5); },
                  {RandomTensor({5, 12}, 1), RandomTensor({12}, 2)});
}

TEST(GradientsTest, SwiGlu) {
  ExpectGradients([](const Inputs& in) { return SwiGlu(in[0]); }, {RandomTensor({4, 14}, 3)});
}

TEST(GradientsTest, NormsOfHeads) {
  const AttentionExtents extents = {
      .num_windows = 1, .window_tokens = 3, .num_heads = 4, .num_kv_heads = 2, .head_dim = 6};
  ExpectGradients(
      [&](const Inputs& in) { return NormalizeHeads(in[0], in[1], in[2], 1e-5, extents); },
      {RandomTensor({3, 8 * 6}, 4), RandomTensor({6}, 5), RandomTensor({6}, 6)});
}

TEST(GradientsTest, CausalAttentionWithRotaryEmbedding) {
  const int64_t window_tokens = 5;
  const at::Tensor angles = at::arange(window_tokens, at::kFloat).unsqueeze(1) *
                            at::tensor(std::vector<float>{1.0f, 0.3f, 0.01f});
  const RotaryTables rotary = {angles.cos().unsqueeze(1), angles.sin().unsqueeze(1)};
  for (const int64_t num_kv_heads : {1, 2, 4}) {
    const AttentionExtents extents = {.num_windows = 2,
                                      .window_tokens = window_tokens,
                                      .num_heads = 4,
                                      .num_kv_heads = num_kv_heads,
                                      .head_dim = 6};
    ExpectGradients([&](const Inputs& in) { return CausalAttention(in[0], rotary, extents); },
                    {RandomTensor({10, (4 + 2 * num_kv_heads) * 6}, 4)});
  }
}

TEST(GradientsTest, AttentionLooksNeitherAheadNorAcrossWindows) {
  const AttentionExtents extents = {
      .num_windows = 2, .window_tokens = 3, .num_heads = 2, .num_kv_heads = 1, .head_dim = 4};
  const RotaryTables rotary = {at::ones({3, 1, 2}), at::zeros({3, 1, 2})};
  const at::Tensor qkv = RandomTensor({6, 16}, 5);
  const at::Tensor before = CausalAttention(qkv, rotary, extents);
  at::Tensor changed = qkv.clone();
  changed[4].add_(1);
  const at::Tensor after = CausalAttention(changed, rotary, extents);
  EXPECT_TRUE(at::equal(before.narrow(0, 0, 4), after.narrow(0, 0, 4)));
  EXPECT_FALSE(at::allclose(before[4], after[4]));
  EXPECT_FALSE(at::allclose(before[5], after[5]));
}

// A site's function and its parameters: latent values [rows, width], then log scales [rows].
struct Trainable {
  Trainable(const EncodedLinear& student, const at::Tensor& teacher,
            const TrainableSiteOptions& options)
      : rows(teacher.size(0)) {
    auto made = MakeTrainableSite(student, teacher, options, store);
    EXPECT_TRUE(made.ok()) << made.status();
    site = *std::move(made);
    store.Finish(at::kCPU);
    width = store.Layout()[0].second / rows;
    const int64_t scales = store.values().numel() - (rows + 63) / 64 * 64;
    latents = store.values().narrow(0, 0, rows * width).view({rows, width});
    latent_gradients = store.gradients().narrow(0, 0, rows * width).view({rows, width});
    log_scales = store.values().narrow(0, scales, rows);
    log_scale_gradients = store.gradients().narrow(0, scales, rows);
  }
  int64_t rows;
  int64_t width;
  ParameterStore store;
  std::unique_ptr<TrainableSite> site;
  at::Tensor latents;
  at::Tensor latent_gradients;
  at::Tensor log_scales;
  at::Tensor log_scale_gradients;
};

constexpr int64_t kRows = 6;
constexpr int64_t kCols = 40;

at::Tensor DenseWeights() { return RandomTensor({kRows, kCols}, 11); }

// Backward from a weighted sum of y = W' x. Returns the gradient with respect to W' [rows, cols],
// which `trainable` has summed in its own way; x's gradient and those of the scales are compared
// with differences.
at::Tensor RunBackward(Trainable& trainable) {
  const at::Tensor x = RandomTensor({7, kCols}, 12).requires_grad_(true);
  const at::Tensor y_gradient = RandomTensor({7, kRows}, 13);
  torch::autograd::backward({trainable.site->Apply(x)}, {y_gradient});
  const auto loss = [&] {
    return (trainable.site->Apply(x).to(at::kDouble) * y_gradient).sum().item<double>();
  };
  const std::vector<float> x_gradient = ToVector(x.grad());
  for (int64_t i = 0; i < x.numel(); ++i) {
    EXPECT_NEAR(x_gradient[static_cast<size_t>(i)], Difference(x, i, 1e-1, loss), 2e-3);
  }
  const std::vector<float> scale_gradient = ToVector(trainable.log_scale_gradients);
  for (int64_t row = 0; row < kRows; ++row) {
    const double expected = Difference(trainable.log_scales, row, 1e-2, loss);
    EXPECT_NEAR(scale_gradient[static_cast<size_t>(row)], expected,
                2e-3 * (1 + std::fabs(expected)));
  }
  return y_gradient.t().mm(x.detach());
}

// What is applied is what is exported, but for the rounding of the scales.
void ExpectAppliesWhatItExports(const Trainable& trainable) {
  const at::Tensor x = RandomTensor({7, kCols}, 14);
  EXPECT_LT(RelativeError(trainable.site->Apply(x), x.mm(DecodeAll(*trainable.site->Export()).t())),
            1e-3);
}

TEST(GradientsTest, FoldPassesTheGradientThroughTheSignsToLatentsWithinTheLimit) {
  for (const bool planes : {false, true}) {
    for (const LatentStart start : {LatentStart::kStudent, LatentStart::kTeacher}) {
      const at::Tensor dense = DenseWeights();
      const auto student = MakeTinyFold(LoneSite(kRows, kCols), ToVector(dense), planes);
      Trainable trainable(*student, dense, {.start = start});
      const FoldLayout& layout = student->layout();
      ASSERT_EQ(trainable.width, layout.groups());
      ExpectAppliesWhatItExports(trainable);
      if (start == LatentStart::kStudent) {
        EXPECT_TRUE(at::allclose(DecodeAll(*trainable.site->Export()), DecodeAll(*student)));
      }
      // Out of the range of one and two planes, 1 and 3 units.
      trainable.latents[2].fill_(9);
      trainable.latents[3].fill_(-9);
      const at::Tensor weight_gradient = RunBackward(trainable);
      const at::Tensor scales = trainable.log_scales.exp();
      for (int64_t row = 0; row < kRows; ++row) {
        for (int64_t group = 0; group < layout.groups(); ++group) {
          double expected = 0;
          for (const int32_t column : layout.ColumnsOf(group)) {
            expected += layout.sign_of_column()[static_cast<size_t>(column)] *
                        weight_gradient[row][column].item<double>() * scales[row].item<double>();
          }
          if (row == 2 || row == 3) expected = 0;
          ASSERT_NEAR(trainable.latent_gradients[row][group].item<double>(), expected, 1e-4)
              << "row " << row << ", group " << group;
        }
      }
      trainable.site->ClampLatents();
      trainable.store.gradients().zero_();
      RunBackward(trainable);
      EXPECT_GT(trainable.latent_gradients[2].abs().max().item<double>(), 0);
      ExpectAppliesWhatItExports(trainable);
    }
  }
}

TEST(GradientsTest, AbsMaxMinGivesTheGradientToTheBucketThatWasChosen) {
  for (const LatentStart start : {LatentStart::kStudent, LatentStart::kTeacher}) {
    const at::Tensor dense = DenseWeights();
    const auto student = MakeTinySketch(LoneSite(kRows, kCols), ToVector(dense));
    Trainable trainable(*student, dense, {.start = start});
    const AbsMaxMinLayout& layout = student->layout();
    ASSERT_EQ(trainable.width, layout.num_buckets());
    ExpectAppliesWhatItExports(trainable);
    if (start == LatentStart::kStudent) {
      EXPECT_TRUE(at::allclose(DecodeAll(*trainable.site->Export()), DecodeAll(*student), 1e-3));
    }
    trainable.latents[2].fill_(999);
    const at::Tensor weight_gradient = RunBackward(trainable);
    const at::Tensor scales = trainable.log_scales.exp();
    const auto exported = trainable.site->Export();
    const auto& sketch = dynamic_cast<const AbsMaxMinLinear&>(*exported);
    std::vector<int8_t> levels(static_cast<size_t>(layout.num_buckets()));
    for (int64_t row = 0; row < kRows; ++row) {
      sketch.UnpackRow(row, levels.data());
      std::vector<double> expected(levels.size());
      for (int64_t index = 0; index < layout.num_classes(); ++index) {
        const AbsMaxMinClass& part = layout.classes()[static_cast<size_t>(index)];
        for (int64_t place = 0; place < part.num_columns; ++place) {
          int32_t chosen = layout.BucketsOf(index, 0)[static_cast<size_t>(place)];
          for (int64_t hash_row = 1; hash_row < part.hash_rows; ++hash_row) {
            const int32_t other = layout.BucketsOf(index, hash_row)[static_cast<size_t>(place)];
            if (std::abs(levels[static_cast<size_t>(other)]) >
                std::abs(levels[static_cast<size_t>(chosen)])) {
              chosen = other;
            }
          }
          const int32_t column =
              layout.columns()[static_cast<size_t>(layout.FirstPlaceOf(index) + place)];
          expected[static_cast<size_t>(chosen)] += part.unit() * scales[row].item<double>() *
                                                   weight_gradient[row][column].item<double>();
        }
      }
      for (int64_t bucket = 0; bucket < layout.num_buckets(); ++bucket) {
        ASSERT_NEAR(trainable.latent_gradients[row][bucket].item<double>(),
                    row == 2 ? 0 : expected[static_cast<size_t>(bucket)], 1e-4)
            << "row " << row << ", bucket " << bucket;
      }
    }
    trainable.site->ClampLatents();
    EXPECT_LT(trainable.latents[2].max().item<double>(), 999);
    ExpectAppliesWhatItExports(trainable);
  }
}

TEST(GradientsTest, AbsMaxMinGivesTheGradientToAllWeightsWhereItIsAskedTo) {
  const at::Tensor dense = DenseWeights();
  const auto student = MakeTinySketch(LoneSite(kRows, kCols), ToVector(dense));
  Trainable trainable(*student, dense,
                      {.start = LatentStart::kTeacher, .sketch_gradient = SketchGradient::kAll});
  ASSERT_EQ(trainable.width, kCols);
  EXPECT_LT(RelativeError(trainable.latents * trainable.log_scales.exp().unsqueeze(1), dense),
            1e-5);
  ExpectAppliesWhatItExports(trainable);
  // An underestimate of each weight that does not have a bucket of its own; of those within half a
  // level, a step.
  const at::Tensor decoded = DecodeAll(*trainable.site->Export());
  EXPECT_LE((decoded.abs() - dense.abs() - 0.51 * trainable.log_scales.exp().unsqueeze(1))
                .max()
                .item<double>(),
            0);
  const at::Tensor weight_gradient = RunBackward(trainable);
  EXPECT_LT(RelativeError(trainable.latent_gradients,
                          weight_gradient * trainable.log_scales.exp().unsqueeze(1)),
            1e-5);
}

TEST(GradientsTest, Divergence) {
  const at::Tensor teacher_hidden = RandomTensor({9, 6}, 21);
  const at::Tensor teacher_head = RandomTensor({17, 6}, 22);
  const at::Tensor hidden = RandomTensor({9, 6}, 23);
  const at::Tensor head = RandomTensor({17, 6}, 24);
  const auto loss = [&] {
    return Divergence(hidden, head, teacher_hidden, teacher_head, 1, false).sum.item<double>();
  };
  const DivergenceResult result =
      Divergence(hidden, head, teacher_hidden, teacher_head, 0.5, /*with_head_gradient=*/true);
  for (const auto& [values, gradient] :
       {std::pair(hidden, result.hidden_gradient), std::pair(head, result.head_gradient)}) {
    for (int64_t i = 0; i < values.numel(); ++i) {
      ASSERT_NEAR(gradient.contiguous().data_ptr<float>()[i],
                  0.5 * Difference(values, i, 1e-2, loss), 3e-3);
    }
  }
  EXPECT_FALSE(
      Divergence(hidden, head, teacher_hidden, teacher_head, 1, false).head_gradient.defined());
  EXPECT_NEAR(Divergence(hidden, head, hidden, head, 1, false).sum.item<double>(), 0, 1e-5);
}

// Logits exist for a few tokens at a time.
TEST(GradientsTest, DivergenceOfManyTokensIsThatOfAllLogitsAtOnce) {
  const at::Tensor teacher_hidden = RandomTensor({41, 3}, 31);
  const at::Tensor hidden = RandomTensor({41, 3}, 32).requires_grad_(true);
  const at::Tensor head = RandomTensor({70000, 3}, 33).requires_grad_(true);
  const at::Tensor teacher_head = RandomTensor({70000, 3}, 34);
  const at::Tensor teacher = at::log_softmax(teacher_hidden.mm(teacher_head.t()), -1);
  const at::Tensor student = at::log_softmax(hidden.mm(head.t()), -1);
  const at::Tensor expected = (teacher.exp() * (teacher - student)).sum();
  torch::autograd::backward({expected}, {});
  const DivergenceResult result =
      Divergence(hidden.detach(), head.detach(), teacher_hidden, teacher_head, 1, true);
  EXPECT_LT(RelativeError(result.sum, expected.view({1})), 1e-4);
  EXPECT_LT(RelativeError(result.hidden_gradient, hidden.grad()), 1e-4);
  EXPECT_LT(RelativeError(result.head_gradient, head.grad()), 1e-4);

  const at::Tensor labels = (at::arange(41, at::kLong) * 1000);
  EXPECT_LT(RelativeError(SumOfNegativeLogLikelihoods(hidden.detach(), head.detach(), labels),
                          -student.gather(1, labels.unsqueeze(1)).sum().view({1})),
            1e-5);
}

// A whole model's gradients.
class DistillationTest : public testing::Test {
 public:
  // A tiny qwen2, which has biases and a head of its own, or a llama with a tied one.
  void Load(bool untied, TinyCodec codec) {
    pair_ = std::make_unique<TinyPair>(
        untied ? nlohmann::json{{"model_type", "qwen2"}, {"tie_word_embeddings", false}}
               : nlohmann::json::object(),
        codec, "keep");
    auto teacher = LoadTeacher(*pair_->OpenTeacher(), {});
    ASSERT_TRUE(teacher.ok()) << teacher.status();
    teacher_ = *std::move(teacher);
    auto student = Student::Load(pair_->OpenStudent(), pair_->OpenTeacher(), {});
    ASSERT_TRUE(student.ok()) << student.status();
    student_ = *std::move(student);
    ids_ = at::empty({4, 6}, at::kLong);
    for (int64_t i = 0; i < ids_.numel(); ++i) {
      ids_.data_ptr<int64_t>()[i] = RandomTokens(ids_.numel(), 61, 3)[static_cast<size_t>(i)];
    }
  }

  at::Tensor Gradients(const DistillationOptions& options, int64_t parts = 1) {
    student_->parameters().gradients().zero_();
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t count = ids_.size(0) / parts;
      losses_ = AddDistillationGradients(*teacher_, *student_, student_->MakeRotaryTables(6),
                                         ids_.narrow(0, part * count, count),
                                         1.0 / static_cast<double>(parts), options);
    }
    return student_->parameters().gradients().clone();
  }

  double Loss(const DistillationOptions& options) {
    Gradients(options);
    return losses_[0].item<double>() + options.hidden_loss * losses_[1].item<double>();
  }

  std::unique_ptr<TinyPair> pair_;
  std::unique_ptr<Decoder> teacher_;
  std::unique_ptr<Student> student_;
  at::Tensor ids_;
  at::Tensor losses_;
};

// Where the model is smooth: in everything but the latent values.
TEST_F(DistillationTest, GradientsOfAWholeModelAreItsDifferences) {
  for (const bool untied : {false, true}) {
    for (const double hidden_loss : {0.0, 0.7}) {
      Load(untied, TinyCodec::kFold);
      const DistillationOptions options = {.hidden_loss = hidden_loss};
      const at::Tensor gradients = Gradients(options);
      const ParameterStore& store = student_->parameters();
      int64_t first = 0;
      int compared = 0;
      for (const auto& [name, size] : store.Layout()) {
        const bool smooth = name.find(".latent") == std::string::npos;
        const double largest = gradients.narrow(0, first, size).abs().max().item<double>();
        for (int64_t i = 0; smooth && i < size; i += (size + 6) / 7) {
          const double expected =
              Difference(store.values(), first + i, 1e-2, [&] { return Loss(options); });
          ASSERT_NEAR(gradients.data_ptr<float>()[first + i], expected,
                      2e-3 * largest + 0.02 * std::fabs(expected) + 5e-4)
              << name << ", element " << i << ", hidden loss " << hidden_loss;
          ++compared;
        }
        EXPECT_GT(largest, 0) << name;
        first += (size + 63) / 64 * 64;
      }
      EXPECT_GT(compared, 90);
    }
  }
}

TEST_F(DistillationTest, CheckpointingActivationsAndAccumulatingChangeNothing) {
  for (const TinyCodec codec : {TinyCodec::kFold, TinyCodec::kAbsMaxMin}) {
    Load(/*untied=*/true, codec);
    for (const double hidden_loss : {0.0, 0.7}) {
      const at::Tensor whole = Gradients({.hidden_loss = hidden_loss});
      const at::Tensor losses = losses_;
      const at::Tensor checkpointed =
          Gradients({.hidden_loss = hidden_loss, .checkpoint_activations = true});
      EXPECT_LT(RelativeError(checkpointed, whole), 1e-5);
      EXPECT_LT(RelativeError(losses_, losses), 1e-6);
      if (hidden_loss == 0) {
        EXPECT_LT(RelativeError(Gradients({}, 4), whole), 1e-5);
      }
    }
  }
}

}  // namespace
}  // namespace ultrasketch
