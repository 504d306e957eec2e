// Models whose embedding and head are integers against the dense models of the decoded tables.
#include "engine/models/vocabulary_tables.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "engine/codecs/grouped/quantize_table.h"
#include "tests/base/temporary_folder.h"
#include "tests/models/reference_decoder.h"
#include "tests/models/tiny_model.h"

namespace ultrasketch {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// A tensor of a tiny model as a table.
class TensorTable : public EncodedLinear {
 public:
  TensorTable(LinearSite site, const std::vector<float>& values)
      : site_(std::move(site)), values_(values) {}
  const LinearSite& site() const override { return site_; }
  std::string_view codec_name() const override { return "test"; }
  void DecodeRows(int64_t first_row, int64_t num_rows, float* out) const override {
    std::copy_n(values_.data() + first_row * site_.cols, num_rows * site_.cols, out);
  }
  std::vector<NamedTensor> StoredTensors() const override { return {}; }
  std::unique_ptr<CpuLinear> PackForCpu() const override { return nullptr; }

 private:
  LinearSite site_;
  const std::vector<float>& values_;
};

nlohmann::json DenseQuantizationConfig() {
  return {{"quant_method", "ultrasketch"}, {"version", 1}, {"codec", "dense"}};
}

// Stores a table of the model as integers, and their decoded values in `dense`.
void Quantize(const LinearSite& site, const char* key, GroupedType type, TinyModel& model,
              TinyModel& dense) {
  const std::string name = site.name + ".weight";
  ThreadPool pool(1);
  std::shared_ptr<const EncodedLinear> table =
      QuantizeTable(TensorTable(site, model.values(name)), type, pool);
  TinyTensor& weight = dense.tensor(name);
  weight.dtype = DType::kF32;
  table->DecodeRows(0, site.rows, weight.values.data());
  model.tensors.erase(name);
  model.sites.push_back(std::move(table));
  model.config["quantization_config"][key] = GroupedTypeName(type);
}

struct TableCase {
  const char* changes;  // of the tiny config
  std::optional<GroupedType> embedding;
  std::optional<GroupedType> head;
};

TEST(VocabularyTablesTest, GiveTheLogitsOfTheDecodedTables) {
  for (const TableCase& table_case :
       {TableCase{R"({})", GroupedType::kInt8, {}}, TableCase{R"({})", GroupedType::kInt4, {}},
        TableCase{R"({"tie_word_embeddings": false, "hidden_size": 136})", GroupedType::kInt8,
                  GroupedType::kInt4},
        TableCase{R"({"tie_word_embeddings": false, "hidden_size": 75, "head_dim": 10})",
                  GroupedType::kInt4, GroupedType::kInt8},
        TableCase{R"({"tie_word_embeddings": false})", GroupedType::kInt4, {}},
        TableCase{R"({"tie_word_embeddings": false})", {}, GroupedType::kInt4}}) {
    SCOPED_TRACE(table_case.changes);
    nlohmann::json config = TinyConfig();
    config.merge_patch(nlohmann::json::parse(table_case.changes));
    TinyModel model = MakeTinyModel(config, {DType::kBF16});
    TinyModel dense = model;
    const ModelConfig parsed = model.Parsed();
    model.config["quantization_config"] = DenseQuantizationConfig();
    if (table_case.embedding.has_value()) {
      Quantize(EmbeddingSite(parsed), kEmbeddingKey, *table_case.embedding, model, dense);
    }
    if (table_case.head.has_value()) {
      Quantize(HeadSite(parsed), kHeadKey, *table_case.head, model, dense);
    }
    const TemporaryFolder folder;
    model.Write(folder.path());
    const auto loaded = MustLoadModel(folder.path(), 2);
    const std::vector<int32_t> ids = RandomTokens(50, 61, 2);
    const std::vector<std::vector<float>> logits = AllLogits(*loaded, ids);
    const std::vector<std::vector<double>> expected = ReferenceLogits(dense, ids);
    ASSERT_EQ(logits.size(), expected.size());
    for (size_t row = 0; row < logits.size(); ++row) {
      for (size_t i = 0; i < logits[row].size(); ++i) {
        ASSERT_NEAR(logits[row][i], expected[row][i], 4e-3) << "row " << row << ", token " << i;
      }
    }
    int64_t stored_bytes = 0;
    for (const auto& table : model.sites) stored_bytes += table->stored_bytes();
    for (const char* kept : {"model.embed_tokens.weight", "lm_head.weight"}) {
      if (!model.tensors.contains(kept)) continue;
      stored_bytes += 2 * static_cast<int64_t>(model.values(kept).size());
    }
    // Of tables of integers the head is a copy with whole groups and strips; their own pages go
    // when they are whole ones, which these tables have not.
    EXPECT_GE(loaded->memory_usage().embedding, stored_bytes);
    EXPECT_LE(loaded->memory_usage().embedding, 4 * stored_bytes);

    // Token by token: the same bits.
    const std::vector<BlockId> blocks = ScatteredBlocks(7, 4);
    for (size_t i = 0; i < ids.size(); ++i) {
      ASSERT_TRUE(loaded
                      ->Forward({{absl::MakeConstSpan(ids).subspan(i, 1), static_cast<int64_t>(i),
                                  blocks, 1}})
                      .ok());
      ASSERT_EQ(LogitsRow(*loaded, 0), logits[i]) << "token " << i;
    }
  }
}

class VocabularyTablesRefusalTest : public ::testing::Test {
 protected:
  void SetUp() override {
    TinyModel dense = model_;
    model_.config["quantization_config"] = DenseQuantizationConfig();
    Quantize(EmbeddingSite(model_.Parsed()), kEmbeddingKey, GroupedType::kInt8, model_, dense);
  }

  absl::Status Load() const {
    const TemporaryFolder folder;
    model_.Write(folder.path());
    auto checkpoint = Checkpoint::Open(folder.path());
    if (!checkpoint.ok()) return checkpoint.status();
    return LoadModel(*checkpoint, *CreateBackend("cpu", {.num_threads = 1}), SmallOptions())
        .status();
  }

  nlohmann::json& quantization_config() { return model_.config["quantization_config"]; }

  TinyModel model_ = MakeTinyModel(TinyConfig(), {DType::kBF16});
};

TEST_F(VocabularyTablesRefusalTest, TypesThatDoNotExist) {
  ASSERT_TRUE(Load().ok()) << Load();
  for (const nlohmann::json& type :
       {nlohmann::json("int2"), nlohmann::json(8), nlohmann::json(nlohmann::json::array({"int8"})),
        nlohmann::json(nlohmann::json::object()), nlohmann::json(true), nlohmann::json("")}) {
    quantization_config()["embedding"] = type;
    const absl::Status status = Load();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << type;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("config.json: quantization_config.embedding"),
                      HasSubstr("expected \"int8\" or \"int4\""), HasSubstr("found ")));
  }
}

TEST_F(VocabularyTablesRefusalTest, ATypeThatTheTensorsDoNotHave) {
  quantization_config()["embedding"] = "int4";
  absl::Status status = Load();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("model.embed_tokens.quantized"), HasSubstr("expected dtype U8"),
                    HasSubstr("found I8")));
  quantization_config().erase("embedding");
  status = Load();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("model.embed_tokens.weight"));
}

TEST_F(VocabularyTablesRefusalTest, AHeadBesideATiedOne) {
  quantization_config()["head"] = "int8";
  const absl::Status status = Load();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("quantization_config.head"), HasSubstr("expected none"),
                    HasSubstr("found the string \"int8\"")));
}

TEST_F(VocabularyTablesRefusalTest, AnUntiedHeadThatIsAbsent) {
  model_.config["tie_word_embeddings"] = false;
  quantization_config()["head"] = "int8";
  const absl::Status status = Load();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("lm_head.quantized"));
}

}  // namespace
}  // namespace ultrasketch
