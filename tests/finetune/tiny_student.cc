#include "tests/finetune/tiny_student.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <utility>

#include "gtest/gtest.h"

#include "engine/base/thread_pool.h"
#include "engine/codecs/absmaxmin/absmaxmin_sketch.h"
#include "engine/codecs/grouped/quantize_table.h"
#include "engine/models/layer_table.h"
#include "engine/models/vocabulary_tables.h"

namespace ultrasketch {
namespace {

constexpr uint64_t kSeed = 42;

std::vector<FoldClass> TinyFoldClasses(int64_t cols, bool planes) {
  if (planes) return EvenFoldClasses(cols, cols + cols / 2);
  return EvenFoldClasses(cols, cols * 2 / 5);
}

std::vector<AbsMaxMinClass> TinySketchClasses(int64_t cols) {
  const int64_t own = cols / 8;
  const int64_t some = cols / 4;
  const int64_t others = cols - own - some;
  return {{own, own, 1, 5, 0}, {some, some / 2, 2, 3, 2}, {others, others / 3, 3, 3, 2}};
}

}  // namespace

LinearSite LoneSite(int64_t rows, int64_t cols) {
  return {.name = "model.layers.0.mlp_input",
          .kind = SiteKind::kMlpInput,
          .layer = 0,
          .rows = rows,
          .cols = cols,
          .members = {{"model.layers.0.mlp.gate_proj", rows, false}}};
}

std::unique_ptr<FoldLinear> MakeTinyFold(const LinearSite& site, const std::vector<float>& weights,
                                         bool planes) {
  FoldLayout layout(kSeed, site.name, TinyFoldClasses(site.cols, planes), {});
  const int64_t row_bytes = (layout.buckets() + 7) / 8;
  std::vector<uint8_t> bits(static_cast<size_t>(site.rows * row_bytes));
  std::vector<float> scales;
  for (int64_t row = 0; row < site.rows; ++row) {
    std::vector<float> means(static_cast<size_t>(layout.groups()));
    float scale = 0;
    for (int64_t group = 0; group < layout.groups(); ++group) {
      float& mean = means[static_cast<size_t>(group)];
      for (const int32_t column : layout.ColumnsOf(group)) {
        mean += layout.sign_of_column()[static_cast<size_t>(column)] *
                weights[static_cast<size_t>(row * site.cols + column)];
      }
      mean /= static_cast<float>(layout.ColumnsOf(group).size());
      scale += std::fabs(mean) / static_cast<float>(layout.groups());
    }
    scales.push_back(scale);
    int64_t group = 0;
    int64_t bucket = 0;
    for (const FoldClass& fold_class : layout.classes()) {
      const int64_t num_groups = fold_class.num_groups();
      const int64_t most = (int64_t{1} << fold_class.planes) - 1;
      for (int64_t place = 0; place < num_groups; ++place, ++group) {
        const float units =
            means[static_cast<size_t>(group)] / (scale * FoldUnit(fold_class.planes));
        const int64_t level =
            std::clamp<int64_t>(2 * static_cast<int64_t>(std::floor(units / 2)) + 1, -most, most);
        const int64_t code = (level + most) / 2;
        for (int64_t plane = 0; plane < fold_class.planes; ++plane) {
          if ((code >> (fold_class.planes - 1 - plane) & 1) == 0) continue;
          const int64_t index = bucket + plane * num_groups + place;
          bits[static_cast<size_t>(row * row_bytes + index / 8)] |=
              static_cast<uint8_t>(1 << (index % 8));
        }
      }
      bucket += fold_class.num_buckets();
    }
  }
  return FoldLinear::FromParts(site, std::move(layout), std::move(bits), scales);
}

std::unique_ptr<AbsMaxMinLinear> MakeTinySketch(const LinearSite& site,
                                                const std::vector<float>& weights) {
  AbsMaxMinLayout layout(kSeed, site.name, TinySketchClasses(site.cols), {});
  std::vector<int8_t> levels(static_cast<size_t>(site.rows * layout.num_buckets()));
  std::vector<float> scales;
  for (int64_t row = 0; row < site.rows; ++row) {
    const float* row_weights = weights.data() + row * site.cols;
    float largest = 0;
    for (int64_t i = 0; i < site.cols; ++i) largest = std::max(largest, std::fabs(row_weights[i]));
    scales.push_back(largest / 15);
    InsertRow(layout, row_weights, scales.back(), levels.data() + row * layout.num_buckets());
  }
  return AbsMaxMinLinear::FromParts(site, std::move(layout), levels, scales);
}

void WriteTinyPair(const nlohmann::json& config_changes, TinyCodec codec, const std::string& table,
                   const std::string& teacher, const std::string& student) {
  nlohmann::json config = TinyConfig();
  config.merge_patch(config_changes);
  const TinyModel dense = MakeTinyModel(config, {table == "keep" ? DType::kF32 : DType::kBF16});
  dense.Write(teacher);
  TinyModel compressed = dense;
  compressed.config["quantization_config"] = {
      {"quant_method", "ultrasketch"},
      {"version", 1},
      {"codec", codec == TinyCodec::kAbsMaxMin ? "absmaxmin" : "fold"},
      {"seed", kSeed}};
  const ModelConfig parsed = dense.Parsed();
  for (const LinearSite& site : LinearSites(parsed)) {
    std::vector<float> weights;
    for (const SiteMember& member : site.members) {
      const std::string name = member.name + ".weight";
      const std::vector<float>& values = dense.values(name);
      weights.insert(weights.end(), values.begin(), values.end());
      compressed.tensors.erase(name);
    }
    if (codec == TinyCodec::kAbsMaxMin) {
      compressed.sites.push_back(MakeTinySketch(site, weights));
    } else {
      compressed.sites.push_back(MakeTinyFold(site, weights, codec == TinyCodec::kFoldPlanes));
    }
  }
  if (const auto type = GroupedTypeFromName(table)) {
    const auto checkpoint = Checkpoint::Open(teacher);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    const auto tables = LoadVocabularyTables(**checkpoint);
    ASSERT_TRUE(tables.ok()) << tables.status();
    ThreadPool pool(1);
    compressed.config["quantization_config"]["embedding"] = table;
    compressed.sites.push_back(QuantizeTable(*tables->embedding, *type, pool));
    compressed.tensors.erase("model.embed_tokens.weight");
    if (tables->head != nullptr) {
      compressed.config["quantization_config"]["head"] = table;
      compressed.sites.push_back(QuantizeTable(*tables->head, *type, pool));
      compressed.tensors.erase("lm_head.weight");
    }
  }
  compressed.Write(student);
  for (const std::string& folder : {teacher, student}) {
    std::filesystem::copy(std::string(SAMPLE_MODEL_DIR) + "/tokenizer.json",
                          folder + "/tokenizer.json");
  }
}

}  // namespace ultrasketch
