#include "engine/codecs/fold/fold_codec.h"

#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

#include "engine/base/status.h"
#include "engine/codecs/fold/fold_linear.h"

namespace ultrasketch {
namespace {

absl::Status DataLoss(const TensorSource& source, const std::string& name,
                      std::string_view message) {
  return absl::DataLossError(
      absl::StrCat(source.Describe(name), ": tensor ", Quoted(name, 200), ": ", A(message)));
}

absl::StatusOr<uint64_t> ReadSeed(const LinearSite& site, const nlohmann::json& parameters) {
  const char* expected = ": expected an unsigned integer \"seed\" in quantization_config, found ";
  if (!parameters.is_object() || !parameters.contains("seed")) {
    return absl::DataLossError(absl::StrCat(site.name, expected, "none"));
  }
  const nlohmann::json& seed = parameters["seed"];
  if (!seed.is_number_integer() || (!seed.is_number_unsigned() && seed.get<int64_t>() < 0)) {
    return absl::DataLossError(absl::StrCat(
        site.name, expected, seed.is_number_integer() ? "a negative one" : seed.type_name()));
  }
  return seed.get<uint64_t>();
}

absl::StatusOr<std::vector<FoldClass>> ReadClasses(const LinearSite& site,
                                                   const TensorSource& source) {
  const std::string name = site.name + ".classes";
  US_ASSIGN_OR_RETURN(const TensorView view, GetTensor(source, name, {DType::kU32}, {-1, 3}));
  if (view.shape[0] > kMaxFoldClasses) {
    return DataLoss(
        source, name,
        absl::StrCat("expected 1 to ", kMaxFoldClasses, " classes, found ", view.shape[0]));
  }
  std::vector<FoldClass> classes;
  for (int64_t index = 0; index < view.shape[0]; ++index) {
    uint32_t entry[3];
    std::memcpy(entry, view.data + index * static_cast<int64_t>(sizeof(entry)), sizeof(entry));
    classes.push_back({entry[0], entry[1], entry[2]});
  }
  if (const absl::Status status = ValidateFoldClasses(site.cols, classes); !status.ok()) {
    return DataLoss(source, name, S(status.message()));
  }
  return classes;
}

// Empty when the site has none.
absl::StatusOr<std::vector<uint8_t>> ReadColumnClasses(const LinearSite& site,
                                                       const TensorSource& source,
                                                       absl::Span<const FoldClass> classes) {
  const std::string name = site.name + ".column_class";
  if (source.Find(name) == nullptr) return std::vector<uint8_t>();
  const int width = ColumnClassBits(static_cast<int64_t>(classes.size()));
  const int64_t num_bytes = (site.cols * width + 7) / 8;
  US_ASSIGN_OR_RETURN(const TensorView view, GetTensor(source, name, {DType::kU8}, {num_bytes}));
  std::vector<uint8_t> column_classes(static_cast<size_t>(site.cols));
  for (int64_t column = 0; column < site.cols; ++column) {
    const int64_t first_bit = column * width;
    column_classes[static_cast<size_t>(column)] =
        static_cast<uint8_t>(view.data[first_bit / 8] >> (first_bit % 8) & ((1 << width) - 1));
  }
  const int64_t used_bits = site.cols * width - (num_bytes - 1) * 8;
  if (view.data[num_bytes - 1] >> used_bits != 0) {
    return DataLoss(source, name, "expected zero bits after the last column, found others");
  }
  if (const absl::Status status = ValidateColumnClasses(classes, column_classes); !status.ok()) {
    return DataLoss(source, name, S(status.message()));
  }
  return column_classes;
}

absl::Status CheckPadding(const LinearSite& site, const TensorSource& source,
                          const std::string& name, const TensorView& bits, int64_t buckets) {
  if (buckets % 8 == 0) return absl::OkStatus();
  const int64_t row_bytes = bits.shape[1];
  for (int64_t row = 0; row < site.rows; ++row) {
    if (bits.data[(row + 1) * row_bytes - 1] >> (buckets % 8) != 0) {
      return DataLoss(source, name,
                      absl::StrCat("row ", row, ": expected zero bits after bucket ", buckets - 1,
                                   ", found others"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckScale(const TensorSource& source, const std::string& name,
                        const TensorView& scale) {
  US_RETURN_IF_ERROR(CheckFinite(source, name, scale));
  const std::vector<float> values = ToFloatVector(scale);
  for (size_t row = 0; row < values.size(); ++row) {
    if (values[row] < 0.0f) {
      return DataLoss(
          source, name,
          absl::StrCat("row ", row, ": expected a scale of at least 0, found ", values[row]));
    }
  }
  return absl::OkStatus();
}

}  // namespace

class FoldCodec : public Codec {
 public:
  std::string_view name() const override { return "fold"; }

  absl::StatusOr<std::unique_ptr<EncodedLinear>> Load(
      const LinearSite& site, const TensorSource& source,
      const nlohmann::json& parameters) const override {
    US_ASSIGN_OR_RETURN(const uint64_t seed, ReadSeed(site, parameters));
    US_ASSIGN_OR_RETURN(std::vector<FoldClass> classes, ReadClasses(site, source));
    int64_t buckets = 0;
    for (const FoldClass& fold_class : classes) buckets += fold_class.num_buckets();

    // Before anything of the site's size is allocated: the file holds as much as its extents say.
    const std::string bits_name = site.name + ".bits";
    US_ASSIGN_OR_RETURN(const TensorView bits,
                        GetTensor(source, bits_name, {DType::kU8}, {site.rows, (buckets + 7) / 8}));
    US_RETURN_IF_ERROR(CheckPadding(site, source, bits_name, bits, buckets));
    const std::string scale_name = site.name + ".scale";
    US_ASSIGN_OR_RETURN(const TensorView scale,
                        GetTensor(source, scale_name, {DType::kF16, DType::kBF16}, {site.rows}));
    US_RETURN_IF_ERROR(CheckScale(source, scale_name, scale));
    US_ASSIGN_OR_RETURN(std::vector<uint8_t> column_classes,
                        ReadColumnClasses(site, source, classes));

    std::unique_ptr<FoldLinear> linear(new FoldLinear(
        site, FoldLayout(seed, site.name, std::move(classes), std::move(column_classes))));
    linear->bits_ = bits;
    linear->scale_ = scale;
    return linear;
  }
};

const Codec& GetFoldCodec() {
  static const FoldCodec codec;
  return codec;
}

}  // namespace ultrasketch
