#include "engine/finetune/trainable_absmaxmin.h"

#include <algorithm>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>

#include "engine/codecs/absmaxmin/absmaxmin_layout.h"
#include "engine/codecs/absmaxmin/absmaxmin_sketch.h"
#include "engine/finetune/row_scales.h"

namespace ultrasketch {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// How far inside the outermost cells a latent value stays.
constexpr double kCellMargin = 0.02;

// The hash as index tensors, and what each bucket can hold.
struct SketchTables {
  explicit SketchTables(const AbsMaxMinLayout& layout);
  void MoveTo(at::Device device);

  // Levels [rows, buckets] of latent values in units of a level.
  at::Tensor Round(const at::Tensor& latent) const {
    const at::Tensor level = at::where(own > 0, latent.round(), latent.trunc());
    return at::maximum(at::minimum(level, largest), least);
  }

  // The values of least magnitude [rows, buckets] of weights [rows, cols], in units of a level.
  at::Tensor Minima(const at::Tensor& weights) const {
    const at::Tensor padded = at::constant_pad_nd(weights, {0, 1}, 1e30);
    const at::Tensor gathered =
        padded.index_select(1, members.view({-1})).view({weights.size(0), members.size(0), -1});
    const at::Tensor place = gathered.abs().argmin(-1, /*keepdim=*/true);
    return gathered.gather(-1, place).squeeze(-1) / unit;
  }

  at::Tensor own;          // [buckets], float: 1 for those of a column alone
  at::Tensor least;        // [buckets]
  at::Tensor largest;      // [buckets]
  at::Tensor unit;         // [buckets]: what a level weighs, in row scales
  at::Tensor edge_low;     // [buckets]: the range of latent values that round to a level
  at::Tensor edge_high;    // [buckets]
  at::Tensor column_unit;  // [cols]
  // [hash rows, cols]: the bucket of a column. Columns with fewer hash rows repeat their first.
  std::vector<at::Tensor> bucket_of_column;
  // [buckets, most members of one]: columns, or `cols` where there are fewer.
  at::Tensor members;
};

SketchTables::SketchTables(const AbsMaxMinLayout& layout) {
  const auto num_buckets = static_cast<size_t>(layout.num_buckets());
  const auto cols = static_cast<size_t>(layout.cols());
  std::vector<float> own_values(num_buckets), least_values(num_buckets),
      largest_values(num_buckets), unit_values(num_buckets), column_units(cols);
  std::vector<std::vector<int64_t>> members_of(num_buckets);
  int64_t hash_rows = 1;
  for (const AbsMaxMinClass& part : layout.classes()) {
    hash_rows = std::max(hash_rows, part.hash_rows);
  }
  std::vector<std::vector<int64_t>> tables(static_cast<size_t>(hash_rows),
                                           std::vector<int64_t>(cols));
  for (int64_t index = 0; index < layout.num_classes(); ++index) {
    const AbsMaxMinClass& part = layout.classes()[static_cast<size_t>(index)];
    const bool is_own = part.buckets == part.num_columns && part.hash_rows == 1;
    const auto first = static_cast<size_t>(layout.FirstBucketOf(index));
    for (size_t bucket = first; bucket < first + static_cast<size_t>(part.num_buckets());
         ++bucket) {
      own_values[bucket] = is_own ? 1.0f : 0.0f;
      least_values[bucket] = static_cast<float>(part.least_level());
      largest_values[bucket] = static_cast<float>(part.largest_level());
      unit_values[bucket] = part.unit();
    }
    for (int64_t hash_row = 0; hash_row < hash_rows; ++hash_row) {
      const absl::Span<const int32_t> buckets =
          layout.BucketsOf(index, hash_row < part.hash_rows ? hash_row : 0);
      for (size_t place = 0; place < buckets.size(); ++place) {
        const int32_t column =
            layout.columns()[static_cast<size_t>(layout.FirstPlaceOf(index)) + place];
        tables[static_cast<size_t>(hash_row)][static_cast<size_t>(column)] = buckets[place];
        column_units[static_cast<size_t>(column)] = part.unit();
        if (hash_row < part.hash_rows) {
          members_of[static_cast<size_t>(buckets[place])].push_back(column);
        }
      }
    }
  }
  own = at::tensor(own_values);
  least = at::tensor(least_values);
  largest = at::tensor(largest_values);
  unit = at::tensor(unit_values);
  column_unit = at::tensor(column_units);
  const at::Tensor reach = at::where(own > 0, 0.5, 1.0).to(at::kFloat) - kCellMargin;
  edge_low = least - reach;
  edge_high = largest + reach;
  for (const std::vector<int64_t>& table : tables) bucket_of_column.push_back(at::tensor(table));
  size_t most = 1;
  for (const auto& columns : members_of) most = std::max(most, columns.size());
  members = at::full({layout.num_buckets(), static_cast<int64_t>(most)}, layout.cols(), at::kLong);
  for (size_t bucket = 0; bucket < num_buckets; ++bucket) {
    std::copy(members_of[bucket].begin(), members_of[bucket].end(),
              members.data_ptr<int64_t>() + bucket * most);
  }
}

void SketchTables::MoveTo(at::Device device) {
  for (at::Tensor* tensor : {&own, &least, &largest, &unit, &edge_low, &edge_high, &column_unit}) {
    *tensor = tensor->to(device);
  }
  for (at::Tensor& table : bucket_of_column) table = table.to(device);
  if (members.defined()) members = members.to(device);
}

// Of the levels [rows, buckets] those that a query returns, [rows, cols], in `values`; and in
// `buckets` [rows, cols] where they are, undefined when that is bucket_of_column[0] in every row.
struct Query {
  Query(const SketchTables& tables, const at::Tensor& levels) {
    values = levels.index_select(1, tables.bucket_of_column[0]);
    for (size_t hash_row = 1; hash_row < tables.bucket_of_column.size(); ++hash_row) {
      const at::Tensor& table = tables.bucket_of_column[hash_row];
      const at::Tensor other = levels.index_select(1, table);
      const at::Tensor larger = other.abs() > values.abs();
      values = at::where(larger, other, values);
      const at::Tensor before =
          buckets.defined() ? buckets : tables.bucket_of_column[0].expand_as(values);
      buckets = at::where(larger, table.expand_as(values), before);
    }
  }
  at::Tensor values;
  at::Tensor buckets;
};

// The decoded weights W' [rows, cols] of latent values of the buckets.
class QueriedWeight : public Function<QueriedWeight> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& latent,
                            const at::Tensor& log_scale, const SketchTables* tables,
                            at::ScalarType compute_type) {
    const Query query(*tables, tables->Round(latent));
    const at::Tensor scale = log_scale.exp().unsqueeze(1);
    const at::Tensor weight = query.values * tables->column_unit * scale;
    context->save_for_backward(
        {latent, scale, weight,
         query.buckets.defined() ? query.buckets : tables->bucket_of_column[0]});
    context->saved_data["tables"] = reinterpret_cast<int64_t>(tables);
    return weight.to(compute_type);
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor& latent = saved[0];
    const at::Tensor& scale = saved[1];
    const at::Tensor& weight = saved[2];
    const at::Tensor& buckets = saved[3];
    const auto* tables =
        reinterpret_cast<const SketchTables*>(context->saved_data["tables"].toInt());
    const at::Tensor gradient = gradients[0].to(at::kFloat);
    const at::Tensor in_range =
        (latent >= tables->edge_low).logical_and_(latent <= tables->edge_high);
    const at::Tensor latent_gradient =
        at::zeros_like(latent)
            .scatter_add_(1, buckets.expand_as(gradient), gradient * scale * tables->column_unit)
            .mul_(in_range.to(at::kFloat));
    return {latent_gradient, (gradient * weight).sum(1), at::Tensor(), at::Tensor()};
  }
};

// The same of latent values of all weights, inserted anew.
class SketchedWeight : public Function<SketchedWeight> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& latent,
                            const at::Tensor& log_scale, const SketchTables* tables,
                            at::ScalarType compute_type) {
    const Query query(*tables, tables->Round(tables->Minima(latent)));
    const at::Tensor scale = log_scale.exp().unsqueeze(1);
    const at::Tensor weight = query.values * tables->column_unit * scale;
    context->save_for_backward({scale, weight});
    return weight.to(compute_type);
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor gradient = gradients[0].to(at::kFloat);
    return {gradient * saved[0], (gradient * saved[1]).sum(1), at::Tensor(), at::Tensor()};
  }
};

class TrainableAbsMaxMin final : public TrainableSite {
 public:
  TrainableAbsMaxMin(const AbsMaxMinLinear& student, const at::Tensor& teacher,
                     const TrainableSiteOptions& options, ParameterStore& parameters);

  at::Tensor Apply(const at::Tensor& x) const override {
    const at::Tensor weight =
        straight_to_all_ ? SketchedWeight::apply(latent_, log_scale_, &tables_, compute_type_)
                         : QueriedWeight::apply(latent_, log_scale_, &tables_, compute_type_);
    return x.mm(weight.t());
  }

  void ClampLatents() override {
    if (straight_to_all_) return;
    const at::NoGradGuard no_gradient;
    latent_.copy_(at::maximum(at::minimum(latent_, tables_.edge_high), tables_.edge_low));
  }

  std::unique_ptr<EncodedLinear> Export() const override {
    const at::NoGradGuard no_gradient;
    const at::Tensor levels = tables_.Round(straight_to_all_ ? tables_.Minima(latent_) : latent_)
                                  .to(at::kCPU, at::kChar)
                                  .contiguous();
    return AbsMaxMinLinear::FromParts(
        student_.site(), student_.layout(),
        absl::MakeConstSpan(levels.data_ptr<int8_t>(), static_cast<size_t>(levels.numel())),
        StorableScales(log_scale_));
  }

 private:
  const AbsMaxMinLinear& student_;
  const bool straight_to_all_;
  const at::ScalarType compute_type_;
  SketchTables tables_;
  at::Tensor latent_;     // [rows, buckets], or [rows, cols]
  at::Tensor log_scale_;  // [rows]
};

TrainableAbsMaxMin::TrainableAbsMaxMin(const AbsMaxMinLinear& student, const at::Tensor& teacher,
                                       const TrainableSiteOptions& options,
                                       ParameterStore& parameters)
    : student_(student),
      straight_to_all_(options.sketch_gradient == SketchGradient::kAll),
      compute_type_(options.compute_type),
      tables_(student.layout()) {
  const LinearSite& site = student.site();
  const at::Tensor scale = WithoutZeros(at::tensor(student.Scales()));
  const at::Tensor dense = teacher / scale.unsqueeze(1);
  at::Tensor levels = at::empty({site.rows, student.layout().num_buckets()}, at::kChar);
  for (int64_t row = 0; row < site.rows; ++row) {
    student.UnpackRow(row, levels.data_ptr<int8_t>() + row * levels.size(1));
  }
  levels = levels.to(at::kFloat);
  if (straight_to_all_) {
    latent_ = options.start == LatentStart::kTeacher
                  ? dense
                  : Query(tables_, levels).values * tables_.column_unit;
  } else {
    const at::Tensor inserted = tables_.Minima(dense);
    latent_ = at::maximum(at::minimum(inserted, tables_.edge_high), tables_.edge_low);
    if (options.start == LatentStart::kStudent) {
      // Rounded toward zero, a cell is on the far side of its level, but for that of zero.
      const at::Tensor is_own = tables_.own > 0;
      const at::Tensor middle = at::where(is_own, levels, levels + 0.5 * levels.sign());
      const at::Tensor reach = at::where(is_own.logical_or(levels != 0), 0.5, 1.0);
      const at::Tensor from_middle = latent_ - middle;
      latent_ = middle + kPullToDense * at::maximum(at::minimum(from_middle, reach), -reach);
    }
  }
  latent_ = latent_.to(at::kFloat).contiguous();
  log_scale_ = scale.log();
  if (!straight_to_all_) tables_.members = at::Tensor();
  tables_.MoveTo(options.device);
  parameters.Add(ParameterGroup::kLatents, site.name + ".latent", &latent_);
  parameters.Add(ParameterGroup::kContinuous, site.name + ".log_scale", &log_scale_);
}

}  // namespace

std::unique_ptr<TrainableSite> MakeTrainableAbsMaxMin(const AbsMaxMinLinear& student,
                                                      const at::Tensor& teacher,
                                                      const TrainableSiteOptions& options,
                                                      ParameterStore& parameters) {
  return std::make_unique<TrainableAbsMaxMin>(student, teacher, options, parameters);
}

}  // namespace ultrasketch
