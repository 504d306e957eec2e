#include "engine/compress/fold_encoder.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "nlohmann/json.hpp"

#include "engine/base/check.h"
#include "engine/base/status.h"

namespace ultrasketch {
namespace {

// Weight of the prior that inputs are uncorrelated, relative to the mean energy of an input. It
// decides where the calibration text says nothing.
constexpr double kRelativePrior = 3e-2;

// How much of the outputs a column carries: its energy times that of its weights.
std::vector<double> ColumnImportance(const LinearSite& site, absl::Span<const float> weights,
                                     absl::Span<const double> energies, double prior) {
  std::vector<double> importance(static_cast<size_t>(site.cols), 0.0);
  for (int64_t row = 0; row < site.rows; ++row) {
    const float* row_weights = weights.data() + row * site.cols;
    for (int64_t column = 0; column < site.cols; ++column) {
      importance[static_cast<size_t>(column)] +=
          static_cast<double>(row_weights[column]) * row_weights[column];
    }
  }
  for (int64_t column = 0; column < site.cols; ++column) {
    importance[static_cast<size_t>(column)] *= energies[static_cast<size_t>(column)] + prior;
  }
  return importance;
}

// Adds row r of `in` [n, cols] folded to row r of `out` [n, groups].
template <typename Value>
void AddFolded(const FoldLayout& layout, const Value* in, double weight, double* out) {
  for (int64_t column = 0; column < layout.cols(); ++column) {
    const auto index = static_cast<size_t>(column);
    out[layout.group_of_column()[index]] += weight *
                                            static_cast<double>(layout.sign_of_column()[index]) *
                                            static_cast<double>(in[column]);
  }
}

// The levels' bits as they are stored: [rows, ceil(buckets / 8)].
std::vector<uint8_t> BitsOf(const FoldLayout& layout, const FoldFit& fit, int64_t rows,
                            ThreadPool& pool) {
  const int64_t row_bytes = (layout.buckets() + 7) / 8;
  std::vector<uint8_t> bits(static_cast<size_t>(rows * row_bytes), 0);
  pool.ParallelFor(rows, 1, [&](int64_t begin, int64_t end, int) {
    const int16_t* level = fit.levels.data() + begin * layout.groups();
    for (int64_t row = begin; row < end; ++row) {
      uint8_t* row_bits = bits.data() + row * row_bytes;
      int64_t first_bucket = 0;
      for (const FoldClass& fold_class : layout.classes()) {
        for (int64_t group = 0; group < fold_class.num_groups(); ++group, ++level) {
          const int code = (*level + (1 << fold_class.planes) - 1) / 2;
          for (int64_t plane = 0; plane < fold_class.planes; ++plane) {
            const int64_t bucket = first_bucket + plane * fold_class.num_groups() + group;
            const int bit = code >> (fold_class.planes - 1 - plane) & 1;
            row_bits[bucket / 8] |= static_cast<uint8_t>(bit << (bucket % 8));
          }
        }
        first_bucket += fold_class.num_buckets();
      }
    }
  });
  return bits;
}

}  // namespace

FoldMoments FoldTheMoments(const FoldLayout& layout, const SiteMoments& moments,
                           absl::Span<const float> weights, double prior, ThreadPool& pool) {
  const int64_t rows = moments.cross.rows();
  const int64_t cols = layout.cols();
  FoldMoments folded;
  folded.output = moments.output;
  folded.cross.setZero(rows, layout.groups());
  pool.ParallelFor(rows, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      double* out = folded.cross.row(row).data();
      AddFolded(layout, moments.cross.row(row).data(), 1.0, out);
      AddFolded(layout, weights.data() + row * cols, prior, out);
    }
  });
  folded.input.setZero(layout.groups(), layout.groups());
  pool.ParallelFor(layout.groups(), 1, [&](int64_t begin, int64_t end, int) {
    RowMajorMatrix sum(1, cols);
    for (int64_t group = begin; group < end; ++group) {
      sum.setZero();
      for (const int32_t column : layout.ColumnsOf(group)) {
        sum += static_cast<double>(layout.sign_of_column()[static_cast<size_t>(column)]) *
               moments.input.row(column);
        folded.input(group, group) += prior;
      }
      AddFolded(layout, sum.data(), 1.0, folded.input.row(group).data());
    }
  });
  return folded;
}

std::vector<uint8_t> PlanesOfGroups(const FoldLayout& layout) {
  std::vector<uint8_t> planes;
  for (const FoldClass& fold_class : layout.classes()) {
    planes.insert(planes.end(), static_cast<size_t>(fold_class.num_groups()),
                  static_cast<uint8_t>(fold_class.planes));
  }
  return planes;
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

absl::StatusOr<std::unique_ptr<FoldLinear>> FitFoldSite(const LinearSite& site,
                                                        const FoldShape& shape, uint64_t seed,
                                                        absl::Span<const float> weights,
                                                        FitMoments& moments, ThreadPool& pool) {
  US_ASSIGN_OR_RETURN(const std::vector<double> energies, moments.InputEnergies());
  const double prior = kRelativePrior * std::accumulate(energies.begin(), energies.end(), 0.0) /
                       static_cast<double>(site.cols);
  FoldLayout layout =
      ChooseFoldLayout(site, shape, seed, ColumnImportance(site, weights, energies, prior));
  US_ASSIGN_OR_RETURN(const FoldFit fit, moments.FitFolded(layout, prior));
  std::vector<uint8_t> bits = BitsOf(layout, fit, site.rows, pool);
  return FoldLinear::FromParts(site, std::move(layout), std::move(bits), fit.scales);
}

FoldEncoder::FoldEncoder(absl::Span<const LinearSite> sites, std::vector<FoldShape> shapes,
                         uint64_t seed)
    : sites_(sites.begin(), sites.end()), shapes_(std::move(shapes)), seed_(seed) {
  US_CHECK(sites_.size() == shapes_.size());
}

nlohmann::json FoldEncoder::Parameters() const { return {{"seed", seed_}}; }

absl::StatusOr<std::unique_ptr<EncodedLinear>> FoldEncoder::Encode(size_t index,
                                                                   absl::Span<const float> weights,
                                                                   FitMoments& moments,
                                                                   ThreadPool& pool) const {
  return FitFoldSite(sites_[index], shapes_[index], seed_, weights, moments, pool);
}

}  // namespace ultrasketch
