#include "engine/codecs/absmaxmin/absmaxmin_codec.h"

#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

#include "engine/base/status.h"
#include "engine/codecs/absmaxmin/absmaxmin_linear.h"

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

absl::StatusOr<std::vector<AbsMaxMinClass>> ReadClasses(const LinearSite& site,
                                                        const TensorSource& source) {
  const std::string name = site.name + ".classes";
  US_ASSIGN_OR_RETURN(const TensorView view,
                      GetTensor(source, name, {DType::kU32}, {-1, kAbsMaxMinClassEntries}));
  if (view.shape[0] > kMaxAbsMaxMinClasses) {
    return DataLoss(
        source, name,
        absl::StrCat("expected 1 to ", kMaxAbsMaxMinClasses, " classes, found ", view.shape[0]));
  }
  std::vector<AbsMaxMinClass> classes;
  for (int64_t index = 0; index < view.shape[0]; ++index) {
    uint32_t entry[kAbsMaxMinClassEntries];
    std::memcpy(entry, view.data + index * static_cast<int64_t>(sizeof(entry)), sizeof(entry));
    classes.push_back({entry[0], entry[1], entry[2], entry[3], entry[4]});
  }
  if (const absl::Status status = ValidateAbsMaxMinClasses(site.cols, classes); !status.ok()) {
    return DataLoss(source, name, S(status.message()));
  }
  return classes;
}

// Empty when the site has none.
absl::StatusOr<std::vector<uint8_t>> ReadColumnClasses(const LinearSite& site,
                                                       const TensorSource& source,
                                                       absl::Span<const AbsMaxMinClass> classes) {
  const std::string name = site.name + ".column_class";
  if (source.Find(name) == nullptr) return std::vector<uint8_t>();
  const int width = AbsMaxMinColumnClassBits(static_cast<int64_t>(classes.size()));
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
  if (const absl::Status status = ValidateAbsMaxMinColumnClasses(classes, column_classes);
      !status.ok()) {
    return DataLoss(source, name, S(status.message()));
  }
  return column_classes;
}

absl::Status CheckPadding(const LinearSite& site, const TensorSource& source,
                          const std::string& name, const TensorView& sketch, int64_t row_bits) {
  if (row_bits % 8 == 0) return absl::OkStatus();
  const int64_t row_bytes = sketch.shape[1];
  for (int64_t row = 0; row < site.rows; ++row) {
    if (sketch.data[(row + 1) * row_bytes - 1] >> (row_bits % 8) != 0) {
      return DataLoss(
          source, name,
          absl::StrCat("row ", row, ": expected zero bits after the last bucket, found others"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckScale(const TensorSource& source, const std::string& name,
                        const TensorView& scale, float largest_magnitude) {
  US_RETURN_IF_ERROR(CheckFinite(source, name, scale));
  const std::vector<float> values = ToFloatVector(scale);
  for (size_t row = 0; row < values.size(); ++row) {
    if (values[row] < 0.0f || !std::isfinite(values[row] * largest_magnitude)) {
      return DataLoss(
          source, name,
          absl::StrCat("row ", row, ": expected a scale of at least 0 that stays finite times ",
                       largest_magnitude, ", found ", values[row]));
    }
  }
  return absl::OkStatus();
}

}  // namespace

class AbsMaxMinCodec : public Codec {
 public:
  std::string_view name() const override { return "absmaxmin"; }

  absl::StatusOr<std::unique_ptr<EncodedLinear>> Load(
      const LinearSite& site, const TensorSource& source,
      const nlohmann::json& parameters) const override {
    US_ASSIGN_OR_RETURN(const uint64_t seed, ReadSeed(site, parameters));
    US_ASSIGN_OR_RETURN(std::vector<AbsMaxMinClass> classes, ReadClasses(site, source));
    int64_t row_bits = 0;
    for (const AbsMaxMinClass& sketch_class : classes) row_bits += sketch_class.num_bits();

    // Before anything of the site's size is allocated: the file holds as much as its extents say.
    const std::string sketch_name = site.name + ".sketch";
    US_ASSIGN_OR_RETURN(const TensorView sketch, GetTensor(source, sketch_name, {DType::kU8},
                                                           {site.rows, (row_bits + 7) / 8}));
    US_RETURN_IF_ERROR(CheckPadding(site, source, sketch_name, sketch, row_bits));
    const std::string scale_name = site.name + ".scale";
    US_ASSIGN_OR_RETURN(const TensorView scale,
                        GetTensor(source, scale_name, {DType::kF16, DType::kBF16}, {site.rows}));
    US_RETURN_IF_ERROR(CheckScale(source, scale_name, scale, LargestMagnitude(classes)));
    US_ASSIGN_OR_RETURN(std::vector<uint8_t> column_classes,
                        ReadColumnClasses(site, source, classes));

    std::unique_ptr<AbsMaxMinLinear> linear(new AbsMaxMinLinear(
        site, AbsMaxMinLayout(seed, site.name, std::move(classes), std::move(column_classes))));
    linear->sketch_ = sketch;
    linear->scale_ = scale;
    return linear;
  }
};

const Codec& GetAbsMaxMinCodec() {
  static const AbsMaxMinCodec codec;
  return codec;
}

}  // namespace ultrasketch
