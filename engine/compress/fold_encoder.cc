#include "engine/compress/fold_encoder.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

#include "engine/base/check.h"
#include "engine/base/status.h"

namespace ultrasketch {

absl::StatusOr<std::vector<float>> ReadSiteWeights(const LinearSite& site,
                                                   const TensorSource& source) {
  std::vector<float> weights(static_cast<size_t>(site.num_weights()));
  int64_t first_row = 0;
  for (const SiteMember& member : site.members) {
    const std::string name = member.name + ".weight";
    US_ASSIGN_OR_RETURN(const TensorView view,
                        GetTensor(source, name, {}, {member.rows, site.cols}));
    US_RETURN_IF_ERROR(CheckFinite(source, name, view));
    CopyToFloat(view, 0, member.rows * site.cols, weights.data() + first_row * site.cols);
    first_row += member.rows;
  }
  US_CHECK(first_row == site.rows);
  return weights;
}

FoldLayout ChooseFoldLayout(const LinearSite& site, const FoldShape& shape, uint64_t seed,
                            absl::Span<const double> column_importance) {
  std::vector<FoldClass> classes = EvenFoldClasses(site.cols, shape.buckets);
  std::vector<uint8_t> column_classes;
  if (shape.ranked && classes.size() > 1) {
    US_CHECK(static_cast<int64_t>(column_importance.size()) == site.cols);
    std::vector<int64_t> order(column_importance.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      return column_importance[static_cast<size_t>(a)] > column_importance[static_cast<size_t>(b)];
    });
    column_classes.resize(column_importance.size());
    size_t place = 0;
    for (size_t index = 0; index < classes.size(); ++index) {
      for (int64_t i = 0; i < classes[index].num_columns; ++i, ++place) {
        column_classes[static_cast<size_t>(order[place])] = static_cast<uint8_t>(index);
      }
    }
  }
  return FoldLayout(seed, site.name, std::move(classes), std::move(column_classes));
}

void AddWeightMoments(const FoldLayout& layout, absl::Span<const float> weights, double weight,
                      FoldMoments& moments) {
  const int64_t buckets = layout.buckets();
  const int64_t cols = layout.cols();
  const int64_t rows = static_cast<int64_t>(weights.size()) / cols;
  if (moments.input.size() == 0) {
    moments.input.setZero(buckets, buckets);
    moments.cross.setZero(rows, buckets);
    moments.output.setZero(rows);
  }
  std::vector<float> folded(static_cast<size_t>(buckets));
  for (const int32_t bucket : layout.bucket_of_column()) moments.input(bucket, bucket) += weight;
  for (int64_t row = 0; row < rows; ++row) {
    const float* row_weights = weights.data() + row * cols;
    layout.Fold(row_weights, folded.data());
    for (int64_t bucket = 0; bucket < buckets; ++bucket) {
      moments.cross(row, bucket) +=
          weight * static_cast<double>(folded[static_cast<size_t>(bucket)]);
    }
    double energy = 0;
    for (int64_t column = 0; column < cols; ++column) {
      energy += static_cast<double>(row_weights[column]) * row_weights[column];
    }
    moments.output(row) += weight * energy;
  }
}

double RelativeWeightError(const EncodedLinear& encoded, absl::Span<const float> weights,
                           ThreadPool& pool) {
  const int64_t rows = encoded.site().rows;
  const int64_t cols = encoded.site().cols;
  std::vector<double> errors(static_cast<size_t>(rows));
  std::vector<double> energies(static_cast<size_t>(rows));
  pool.ParallelFor(rows, 1, [&](int64_t begin, int64_t end, int) {
    std::vector<float> decoded(static_cast<size_t>(cols));
    for (int64_t row = begin; row < end; ++row) {
      encoded.DecodeRows(row, 1, decoded.data());
      const float* expected = weights.data() + row * cols;
      double error = 0;
      double energy = 0;
      for (int64_t column = 0; column < cols; ++column) {
        const double difference =
            static_cast<double>(decoded[static_cast<size_t>(column)]) - expected[column];
        error += difference * difference;
        energy += static_cast<double>(expected[column]) * expected[column];
      }
      errors[static_cast<size_t>(row)] = error;
      energies[static_cast<size_t>(row)] = energy;
    }
  });
  const double energy = std::accumulate(energies.begin(), energies.end(), 0.0);
  return energy > 0 ? std::accumulate(errors.begin(), errors.end(), 0.0) / energy
                    : std::numeric_limits<double>::quiet_NaN();
}

}  // namespace ultrasketch
