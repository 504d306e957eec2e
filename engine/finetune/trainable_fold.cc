#include "engine/finetune/trainable_fold.h"

#include <algorithm>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>

#include "engine/finetune/row_scales.h"

namespace ultrasketch {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// y [num_tokens, rows] = W' x of x [num_tokens, cols]. `levels` is what Levels gives for `latent`
// [rows, groups], in units of the scale, or null where each group has one plane: then the sign is
// the level.
class FoldProduct : public Function<FoldProduct> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& latent,
                            const at::Tensor& log_scale, const at::Tensor& fold,
                            const at::Tensor& limit, const at::Tensor* level_values) {
    const at::Tensor scale = log_scale.exp().unsqueeze(1);
    const at::Tensor weight =
        level_values != nullptr
            ? (*level_values * scale).to(x.scalar_type())
            : at::where(latent >= 0, scale.to(x.scalar_type()), (-scale).to(x.scalar_type()));
    const at::Tensor sketch = x.mm(fold);
    context->save_for_backward({latent, scale, fold, limit, weight, sketch});
    return sketch.mm(weight.t());
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor& latent = saved[0];
    const at::Tensor& scale = saved[1];
    const at::Tensor& fold = saved[2];
    const at::Tensor& limit = saved[3];
    const at::Tensor& weight = saved[4];
    const at::Tensor& sketch = saved[5];
    const at::Tensor& gradient = gradients[0];
    const at::Tensor x_gradient = gradient.mm(weight).mm(fold.t());
    const at::Tensor weight_gradient = gradient.t().mm(sketch).to(at::kFloat);
    const at::Tensor log_scale_gradient = (weight_gradient * weight).sum(1);
    const at::Tensor latent_gradient =
        (weight_gradient * scale).mul_((latent.abs() <= limit).to(at::kFloat));
    return {x_gradient,   latent_gradient, log_scale_gradient,
            at::Tensor(), at::Tensor(),    at::Tensor()};
  }
};

class TrainableFold final : public TrainableSite {
 public:
  TrainableFold(const FoldLinear& student, const at::Tensor& teacher,
                const TrainableSiteOptions& options, ParameterStore& parameters);

  at::Tensor Apply(const at::Tensor& x) const override {
    at::Tensor level_values;
    if (!one_plane_) {
      const at::NoGradGuard no_gradient;
      level_values = Levels() * unit_;
    }
    return FoldProduct::apply(x, latent_, log_scale_, fold_, limit_,
                              one_plane_ ? nullptr : &level_values);
  }

  void ClampLatents() override {
    const at::NoGradGuard no_gradient;
    latent_.copy_(at::maximum(at::minimum(latent_, limit_), -limit_));
  }

  std::unique_ptr<EncodedLinear> Export() const override;

 private:
  // Odd integers of the groups [rows, groups], of at most top_ in magnitude.
  at::Tensor Levels() const {
    const at::Tensor level = (latent_ / (2 * unit_)).floor_().mul_(2).add_(1);
    return at::maximum(at::minimum(level, top_), -top_);
  }

  const FoldLinear& student_;
  bool one_plane_ = true;
  at::Tensor fold_;       // [cols, groups] of 0, -1 and 1, in the compute type
  at::Tensor unit_;       // [groups]: what an odd level weighs
  at::Tensor top_;        // [groups]: the largest level
  at::Tensor limit_;      // [groups]: unit * top
  at::Tensor latent_;     // [rows, groups], in units of the row's scale
  at::Tensor log_scale_;  // [rows]
};

// The stored levels [rows, groups].
at::Tensor StoredLevels(const FoldLinear& student) {
  const FoldLayout& layout = student.layout();
  const int64_t rows = student.site().rows;
  at::Tensor levels = at::empty({rows, layout.groups()}, at::kFloat);
  float* out = levels.data_ptr<float>();
  for (int64_t row = 0; row < rows; ++row) {
    int64_t bucket = 0;
    for (const FoldClass& fold_class : layout.classes()) {
      const int64_t num_groups = fold_class.num_groups();
      for (int64_t group = 0; group < num_groups; ++group) {
        int level = 0;
        for (int64_t plane = 0; plane < fold_class.planes; ++plane) {
          level = 2 * level + (student.bit(row, bucket + plane * num_groups + group) ? 1 : -1);
        }
        *out++ = static_cast<float>(level);
      }
      bucket += fold_class.num_buckets();
    }
  }
  return levels;
}

TrainableFold::TrainableFold(const FoldLinear& student, const at::Tensor& teacher,
                             const TrainableSiteOptions& options, ParameterStore& parameters)
    : student_(student) {
  const FoldLayout& layout = student.layout();
  const LinearSite& site = student.site();
  at::Tensor fold = at::zeros({site.cols, layout.groups()}, at::kFloat);
  for (int64_t column = 0; column < site.cols; ++column) {
    const auto index = static_cast<size_t>(column);
    fold.data_ptr<float>()[column * layout.groups() + layout.group_of_column()[index]] =
        layout.sign_of_column()[index];
  }
  std::vector<float> unit;
  std::vector<float> top;
  std::vector<float> columns;
  for (const FoldClass& fold_class : layout.classes()) {
    const auto count = static_cast<size_t>(fold_class.num_groups());
    unit.insert(unit.end(), count, FoldUnit(fold_class.planes));
    top.insert(top.end(), count, static_cast<float>((1 << fold_class.planes) - 1));
    columns.insert(columns.end(), count, static_cast<float>(fold_class.columns_per_group));
    one_plane_ = one_plane_ && fold_class.planes == 1;
  }
  unit_ = at::tensor(unit);
  top_ = at::tensor(top);
  limit_ = unit_ * top_;

  // The dense weights' signed means over the groups.
  const at::Tensor mean = teacher.mm(fold) / at::tensor(columns);
  at::Tensor scale;
  if (options.start == LatentStart::kTeacher) {
    scale = WithoutZeros(mean.abs().mean(1));
    latent_ = mean / scale.unsqueeze(1);
    latent_ = at::maximum(at::minimum(latent_, limit_), -limit_);
  } else {
    scale = WithoutZeros(at::tensor(student.Scales()));
    const at::Tensor level = StoredLevels(student);
    const at::Tensor middle = level * unit_ * at::where(top_ > 1, 1.0, 0.5);
    const at::Tensor low = at::maximum((level - 1) * unit_, -limit_);
    const at::Tensor high = at::minimum((level + 1) * unit_, limit_);
    const at::Tensor dense = at::maximum(at::minimum(mean / scale.unsqueeze(1), high), low);
    latent_ = middle + kPullToDense * (dense - middle);
  }
  log_scale_ = scale.log();
  latent_ = latent_.contiguous();

  fold_ = fold.to(options.device, options.compute_type);
  unit_ = unit_.to(options.device);
  top_ = top_.to(options.device);
  limit_ = limit_.to(options.device);
  parameters.Add(ParameterGroup::kLatents, site.name + ".latent", &latent_);
  parameters.Add(ParameterGroup::kContinuous, site.name + ".log_scale", &log_scale_);
}

std::unique_ptr<EncodedLinear> TrainableFold::Export() const {
  const at::NoGradGuard no_gradient;
  const FoldLayout& layout = student_.layout();
  const LinearSite& site = student_.site();
  // 0 to 2^planes - 1: the bits of the planes, the first the most significant.
  const at::Tensor codes =
      ((one_plane_ ? at::where(latent_ >= 0, 1.0, -1.0).to(at::kFloat) : Levels()) + top_)
          .div_(2)
          .to(at::kCPU, at::kInt)
          .contiguous();
  const int* code = codes.data_ptr<int>();
  const int64_t row_bytes = student_.row_bytes();
  std::vector<uint8_t> bits(static_cast<size_t>(site.rows * row_bytes), 0);
  for (int64_t row = 0; row < site.rows; ++row) {
    uint8_t* row_bits = bits.data() + row * row_bytes;
    int64_t bucket = 0;
    for (const FoldClass& fold_class : layout.classes()) {
      const int64_t num_groups = fold_class.num_groups();
      for (int64_t group = 0; group < num_groups; ++group, ++code) {
        for (int64_t plane = 0; plane < fold_class.planes; ++plane) {
          if ((*code >> (fold_class.planes - 1 - plane) & 1) == 0) continue;
          const int64_t place = bucket + plane * num_groups + group;
          row_bits[place / 8] |= static_cast<uint8_t>(1 << (place % 8));
        }
      }
      bucket += fold_class.num_buckets();
    }
  }
  return FoldLinear::FromParts(site, layout, std::move(bits), StorableScales(log_scale_));
}

}  // namespace

std::unique_ptr<TrainableSite> MakeTrainableFold(const FoldLinear& student,
                                                 const at::Tensor& teacher,
                                                 const TrainableSiteOptions& options,
                                                 ParameterStore& parameters) {
  return std::make_unique<TrainableFold>(student, teacher, options, parameters);
}

}  // namespace ultrasketch
