// Embedding and head of compressed models.
#include "engine/compress/table_compression.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/file.h"
#include "engine/compress/accounting.h"
#include "engine/compress/compressor.h"
#include "engine/format/json.h"
#include "engine/models/vocabulary_tables.h"
#include "tests/base/temporary_folder.h"
#include "tests/models/tiny_model.h"

namespace ultrasketch {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

ModelConfig TinyModelConfig(bool tied) {
  nlohmann::json config = TinyConfig();
  config["tie_word_embeddings"] = tied;
  return *ParseModelConfig(config, "config.json");
}

TEST(ChooseTableTypesTest, AutoIsInt8BelowTwoBits) {
  for (const double bits : {0.1, 0.5, 1.99}) {
    const auto tied = ChooseTableTypes(TinyModelConfig(true), "auto", "auto", bits);
    ASSERT_TRUE(tied.ok()) << tied.status();
    EXPECT_EQ(tied->embedding, GroupedType::kInt8);
    EXPECT_EQ(tied->head, std::nullopt);
    const auto untied = ChooseTableTypes(TinyModelConfig(false), "auto", "auto", bits);
    EXPECT_EQ(untied->embedding, GroupedType::kInt8);
    EXPECT_EQ(untied->head, GroupedType::kInt8);
  }
  for (const double bits : {2.0, 4.0}) {
    const auto types = ChooseTableTypes(TinyModelConfig(false), "auto", "auto", bits);
    EXPECT_EQ(types->embedding, std::nullopt);
    EXPECT_EQ(types->head, std::nullopt);
  }
}

TEST(ChooseTableTypesTest, TakesEachWordForEachTable) {
  const auto types = ChooseTableTypes(TinyModelConfig(false), "int4", "keep", 0.5);
  ASSERT_TRUE(types.ok()) << types.status();
  EXPECT_EQ(types->embedding, GroupedType::kInt4);
  EXPECT_EQ(types->head, std::nullopt);
  EXPECT_EQ(TableParameters(*types), nlohmann::json({{"embedding", "int4"}}));
  const auto other = ChooseTableTypes(TinyModelConfig(false), "keep", "int8", 4);
  EXPECT_EQ(TableParameters(*other), nlohmann::json({{"head", "int8"}}));
}

TEST(ChooseTableTypesTest, ATiedHeadIsTheEmbedding) {
  const ModelConfig tied = TinyModelConfig(true);
  EXPECT_TRUE(ChooseTableTypes(tied, "int4", "int4", 0.5).ok());
  EXPECT_TRUE(ChooseTableTypes(tied, "auto", "int8", 0.5).ok());
  for (const char* head : {"int4", "keep"}) {
    const auto types = ChooseTableTypes(tied, "auto", head, 0.5);
    EXPECT_EQ(types.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(
        std::string(types.status().message()),
        AllOf(HasSubstr("head"), HasSubstr("the same as for the embedding"), HasSubstr(head)));
  }
}

TEST(ChooseTableTypesTest, RefusesOtherWords) {
  for (const char* word : {"", "int2", "bf16", "INT8", "auto "}) {
    for (const bool is_head : {false, true}) {
      const auto types = ChooseTableTypes(TinyModelConfig(false), is_head ? "auto" : word,
                                          is_head ? word : "auto", 0.5);
      EXPECT_EQ(types.status().code(), absl::StatusCode::kInvalidArgument) << word;
      EXPECT_THAT(std::string(types.status().message()),
                  HasSubstr(is_head ? "head: expected" : "embedding: expected"));
    }
  }
}

class TableCompressionTest : public ::testing::Test {
 protected:
  std::shared_ptr<const Checkpoint> Write(const TinyModel& model) {
    model.Write(dense_.path());
    auto checkpoint = Checkpoint::Open(dense_.path());
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    return *std::move(checkpoint);
  }

  std::shared_ptr<const Checkpoint> Untied() {
    nlohmann::json config = TinyConfig();
    config["tie_word_embeddings"] = false;
    return Write(MakeTinyModel(config, {DType::kBF16, DType::kF16, DType::kF32}));
  }

  absl::Status Compress(const std::shared_ptr<const Checkpoint>& dense, const char* embedding,
                        const char* head) {
    CompressOptions options;
    options.bits_per_weight = 4;
    options.calibration_windows = 0;
    options.num_threads = 1;
    options.overwrite = true;
    options.embedding = embedding;
    options.head = head;
    const auto report = CompressCheckpoint(dense, out_.path(), options);
    if (!report.ok()) return report.status();
    auto checkpoint = Checkpoint::Open(out_.path());
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    written_ = *std::move(checkpoint);
    const auto size = MeasureModel(*written_);
    EXPECT_TRUE(size.ok()) << size.status();
    EXPECT_EQ(size->parameters, NumParameters(dense->config()));
    EXPECT_EQ(report->bits_per_weight_file, size->bits_per_weight_file);
    types_.clear();
    bytes_ = 0;
    for (const TableSize& table : size->tables) {
      types_.push_back(table.name + " " + table.type);
      bytes_ += table.bytes;
    }
    return absl::OkStatus();
  }

  void ExpectSameTensor(const Checkpoint& dense, const char* name) {
    const TensorView* expected = dense.Find(name);
    const TensorView* found = written_->Find(name);
    ASSERT_NE(found, nullptr) << name;
    EXPECT_EQ(found->dtype, expected->dtype);
    ASSERT_EQ(found->shape, expected->shape);
    EXPECT_EQ(std::memcmp(found->data, expected->data, static_cast<size_t>(expected->num_bytes())),
              0);
  }

  TemporaryFolder dense_;
  TemporaryFolder out_;
  std::shared_ptr<const Checkpoint> written_;
  std::vector<std::string> types_;
  int64_t bytes_ = 0;
};

TEST_F(TableCompressionTest, WritesWhatRoundingGives) {
  const auto dense = Untied();
  ASSERT_TRUE(Compress(dense, "int4", "int8").ok());
  EXPECT_THAT(types_, ::testing::ElementsAre("model.embed_tokens int4", "lm_head int8"));
  EXPECT_EQ(written_->Find("model.embed_tokens.weight"), nullptr);
  EXPECT_EQ(written_->Find("lm_head.weight"), nullptr);
  ThreadPool pool(2);
  const TableTypes types = {GroupedType::kInt4, GroupedType::kInt8};
  const auto rounded = CompressTables(*dense, types, pool);
  ASSERT_TRUE(rounded.ok()) << rounded.status();
  EXPECT_EQ(bytes_, TableBytes(dense->config(), types));
  for (const GroupedTable* table : {rounded->embedding.get(), rounded->head.get()}) {
    for (const NamedTensor& expected : table->StoredTensors()) {
      const TensorView* found = written_->Find(expected.name);
      ASSERT_NE(found, nullptr) << expected.name;
      ASSERT_EQ(found->shape, expected.view.shape);
      EXPECT_EQ(
          std::memcmp(found->data, expected.view.data, static_cast<size_t>(found->num_bytes())), 0)
          << expected.name;
    }
  }
  const auto model = MustLoadModel(out_.path());
  for (const std::vector<float>& row : AllLogits(*model, {1, 2, 3})) {
    for (const float logit : row) EXPECT_TRUE(std::isfinite(logit));
  }
}

TEST_F(TableCompressionTest, KeepsTablesToTheByte) {
  const auto dense = Untied();
  ASSERT_TRUE(Compress(dense, "keep", "int4").ok());
  ExpectSameTensor(*dense, "model.embed_tokens.weight");
  EXPECT_EQ(written_->Find("lm_head.weight"), nullptr);
  ASSERT_TRUE(Compress(dense, "int8", "auto").ok());
  ExpectSameTensor(*dense, "lm_head.weight");
  EXPECT_EQ(written_->Find("model.embed_tokens.weight"), nullptr);
}

TEST_F(TableCompressionTest, ATiedHeadHasOneTable) {
  const auto dense = Write(MakeTinyModel(TinyConfig(), {DType::kBF16}));
  ASSERT_TRUE(Compress(dense, "int8", "auto").ok());
  EXPECT_THAT(types_, ::testing::ElementsAre("model.embed_tokens int8"));
  EXPECT_EQ(Compress(dense, "int8", "int4").code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(TableCompressionTest, KeepsAHeadThatTheConfigDoesNotSpeakOf) {
  nlohmann::json config = TinyConfig();
  config["tie_word_embeddings"] = false;
  TinyModel model = MakeTinyModel(config, {DType::kBF16});
  const auto honest = Write(model);
  ASSERT_TRUE(Compress(honest, "int8", "int8").ok());
  const auto expected = AllLogits(*MustLoadModel(out_.path()), {1, 2, 3});

  model.config["tie_word_embeddings"] = true;
  const auto dense = Write(model);
  EXPECT_EQ(dense->warnings().size(), 1u);
  ASSERT_TRUE(Compress(dense, "int8", "int8").ok());
  EXPECT_THAT(types_, ::testing::ElementsAre("model.embed_tokens int8", "lm_head int8"));
  EXPECT_FALSE(written_->config().tie_word_embeddings);
  EXPECT_TRUE(written_->warnings().empty());
  EXPECT_EQ(AllLogits(*MustLoadModel(out_.path()), {1, 2, 3}), expected);
  ASSERT_TRUE(Compress(dense, "int8", "keep").ok());
  ExpectSameTensor(*dense, "lm_head.weight");
  EXPECT_TRUE(written_->warnings().empty());

  // The flag alone does not lose what is stored, in a compressed model either.
  for (const char* head : {"keep", "int8"}) {
    ASSERT_TRUE(Compress(dense, "int8", head).ok());
    const auto logits = AllLogits(*MustLoadModel(out_.path()), {1, 2, 3});
    nlohmann::json written = *ReadJsonFile(out_.File("config.json"));
    written["tie_word_embeddings"] = true;
    out_.Write("config.json", written.dump());
    EXPECT_EQ(AllLogits(*MustLoadModel(out_.path()), {1, 2, 3}), logits) << head;
  }
}

TEST_F(TableCompressionTest, WritesTheOneTableOfATiedModelOnce) {
  TinyModel model = MakeTinyModel(TinyConfig(), {DType::kBF16});
  const auto plain = Write(model);
  ASSERT_TRUE(Compress(plain, "keep", "auto").ok());
  const std::string expected = *ReadFile(out_.File("model.safetensors"));
  const std::string expected_config = *ReadFile(out_.File("config.json"));

  model.tensors["lm_head.weight"] = model.tensor("model.embed_tokens.weight");
  ASSERT_TRUE(Compress(Write(model), "keep", "auto").ok());
  EXPECT_TRUE(*ReadFile(out_.File("model.safetensors")) == expected);
  model.tensors.erase("model.embed_tokens.weight");
  ASSERT_TRUE(Compress(Write(model), "keep", "auto").ok());
  EXPECT_TRUE(*ReadFile(out_.File("model.safetensors")) == expected);
  EXPECT_EQ(*ReadFile(out_.File("config.json")), expected_config);
}

TEST_F(TableCompressionTest, RefusesATensorThatIsMissingBeforeItWorks) {
  TinyModel model = MakeTinyModel(TinyConfig(), {DType::kBF16});
  model.tensors.erase("model.layers.1.mlp.down_proj.weight");
  const absl::Status status = Compress(Write(model), "auto", "auto");
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("model.layers.1.mlp.down_proj.weight"));
}

TEST_F(TableCompressionTest, RefusesWeightsThatAreNoNumbers) {
  TinyModel model = MakeTinyModel(TinyConfig(), {DType::kBF16});
  model.tensor("model.embed_tokens.weight").values[77] = std::numeric_limits<float>::quiet_NaN();
  const absl::Status status = Compress(Write(model), "int8", "auto");
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("model.embed_tokens.weight"), HasSubstr("element 77 is NaN")));
}

}  // namespace
}  // namespace ultrasketch
