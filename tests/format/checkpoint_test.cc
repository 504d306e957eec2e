#include "engine/format/checkpoint.h"

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include <sys/stat.h>

#include "engine/base/dtype.h"
#include "engine/base/file.h"
#include "tests/base/temporary_folder.h"
#include "tests/base/without_privileges.h"
#include "tests/format/safetensors_bytes.h"

namespace ultrasketch {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr const char* kConfig = R"({
  "model_type": "llama", "vocab_size": 100, "hidden_size": 8, "intermediate_size": 16,
  "num_hidden_layers": 1, "num_attention_heads": 2, "eos_token_id": 7})";

constexpr const char* kIndexName = "model.safetensors.index.json";
constexpr const char* kFirst = "model-00001-of-00002.safetensors";
constexpr const char* kSecond = "model-00002-of-00002.safetensors";

class CheckpointTest : public ::testing::Test {
 protected:
  CheckpointTest() { folder_.Write("config.json", kConfig); }

  // A weights file with one-element tensors of these names; the value tells files apart.
  void WriteWeights(std::string_view file, const std::vector<std::string>& names, float value) {
    std::vector<TensorToWrite> tensors;
    for (const std::string& name : names) {
      tensors.emplace_back(name,
                           TensorView{DType::kF32, {1}, reinterpret_cast<const uint8_t*>(&value)});
    }
    ASSERT_TRUE(WriteSafetensors(folder_.File(file), tensors).ok());
  }

  // Two shards, {a, c} and {b}, and an index with `weight_map` in it.
  void WriteShards(const std::string& weight_map) {
    WriteWeights(kFirst, {"a", "c"}, 1);
    WriteWeights(kSecond, {"b"}, 2);
    folder_.Write(kIndexName,
                  R"({"metadata": {"total_size": 12}, "weight_map": )" + weight_map + "}");
  }

  std::string GoodMap() const {
    return R"({"a": ")" + std::string(kFirst) + R"(", "b": ")" + kSecond + R"(", "c": ")" + kFirst +
           R"("})";
  }

  void ExpectError(absl::StatusCode code, const std::vector<std::string>& parts) {
    const absl::Status status = Checkpoint::Open(folder_.path()).status();
    EXPECT_EQ(status.code(), code) << status;
    for (const std::string& part : parts) {
      EXPECT_THAT(std::string(status.message()), HasSubstr(part));
    }
  }

  const TemporaryFolder folder_;
};

TEST_F(CheckpointTest, OpensASingleFile) {
  WriteWeights("model.safetensors", {"b", "a"}, 1);
  folder_.Write("tokenizer.json", "1234567");
  folder_.Write("README.md", "does not count");
  const auto checkpoint = Checkpoint::Open(folder_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->folder(), folder_.path());
  EXPECT_EQ((*checkpoint)->config().vocab_size, 100);
  EXPECT_THAT((*checkpoint)->tensor_names(), ElementsAre("a", "b"));
  EXPECT_NE((*checkpoint)->Find("a"), nullptr);
  EXPECT_EQ((*checkpoint)->Find("c"), nullptr);
  EXPECT_EQ((*checkpoint)->Describe("a"), folder_.File("model.safetensors"));
  EXPECT_EQ((*checkpoint)->Describe("c"), folder_.path());
  EXPECT_EQ((*checkpoint)->tokenizer_path(), folder_.File("tokenizer.json"));
  EXPECT_THAT((*checkpoint)->eos_token_ids(), ElementsAre(7));
  const auto bytes = [&](const char* name) {
    return static_cast<int64_t>(std::filesystem::file_size(folder_.File(name)));
  };
  EXPECT_EQ((*checkpoint)->file_bytes(),
            bytes("model.safetensors") + bytes("config.json") + bytes("tokenizer.json"));
}

TEST_F(CheckpointTest, OpensShards) {
  WriteShards(GoodMap());
  const auto checkpoint = Checkpoint::Open(folder_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_THAT((*checkpoint)->tensor_names(), ElementsAre("a", "b", "c"));
  EXPECT_THAT(ToFloatVector(*(*checkpoint)->Find("a")), ElementsAre(1));
  EXPECT_THAT(ToFloatVector(*(*checkpoint)->Find("b")), ElementsAre(2));
  EXPECT_EQ((*checkpoint)->Describe("b"), folder_.File(kSecond));
  int64_t bytes = 0;
  for (const char* name : {"config.json", kIndexName, kFirst, kSecond}) {
    bytes += static_cast<int64_t>(std::filesystem::file_size(folder_.File(name)));
  }
  EXPECT_EQ((*checkpoint)->file_bytes(), bytes);
}

TEST_F(CheckpointTest, RejectsATensorThatDiffersFromItsChecksum) {
  WriteShards(GoodMap());
  for (const char* name : {kFirst, kSecond}) {
    const std::string intact = *ReadFile(folder_.File(name));
    std::string changed = intact;
    changed.back() ^= 0x10;
    folder_.Write(name, changed);
    ExpectError(absl::StatusCode::kDataLoss,
                {name, name == kFirst ? "tensor \"c\"" : "tensor \"b\"", "checksum"});
    folder_.Write(name, intact);
  }
  EXPECT_TRUE(Checkpoint::Open(folder_.path()).ok());
}

TEST_F(CheckpointTest, PrefersTheSingleFile) {
  WriteShards(GoodMap());
  WriteWeights("model.safetensors", {"single"}, 3);
  const auto checkpoint = Checkpoint::Open(folder_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_THAT((*checkpoint)->tensor_names(), ElementsAre("single"));
}

TEST_F(CheckpointTest, SaysThatTheSizeOfAHeadWasAssumed) {
  folder_.Write("config.json", R"({
    "model_type": "qwen3", "vocab_size": 100, "hidden_size": 8, "intermediate_size": 16,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1})");
  const std::vector<float> values(4 * 8);
  std::vector<TensorToWrite> tensors;
  tensors.emplace_back(
      "model.layers.0.self_attn.q_proj.weight",
      TensorView{DType::kF32, {4, 8}, reinterpret_cast<const uint8_t*>(values.data())});
  ASSERT_TRUE(WriteSafetensors(folder_.File("model.safetensors"), tensors).ok());
  ExpectError(absl::StatusCode::kDataLoss, {folder_.File("config.json"), "head_dim",
                                            "128 was assumed", "256", "q_proj", "4 rows"});
}

TEST_F(CheckpointTest, ATiedModelWithAHeadOfAnUnsupportedTypeHasNoOther) {
  folder_.Write("config.json", R"({
    "model_type": "llama", "vocab_size": 2, "hidden_size": 8, "intermediate_size": 16,
    "num_hidden_layers": 1, "num_attention_heads": 2, "tie_word_embeddings": true})");
  folder_.Write(
      "model.safetensors",
      SafetensorsBytes(
          R"({"model.embed_tokens.weight":{"dtype":"F16","shape":[1],"data_offsets":[0,2]},)"
          R"("lm_head.weight":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[2,3]}})",
          "abc"));
  const auto checkpoint = Checkpoint::Open(folder_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_FALSE((*checkpoint)->config().tie_word_embeddings);
  EXPECT_EQ((*checkpoint)->Missing("lm_head.weight").code(), absl::StatusCode::kUnimplemented);
}

TEST_F(CheckpointTest, FollowsSymbolicLinksToFiles) {
  const TemporaryFolder blobs;
  WriteWeights("model.safetensors", {"a"}, 1);
  std::filesystem::rename(folder_.File("model.safetensors"), blobs.File("blob"));
  std::filesystem::create_symlink(blobs.File("blob"), folder_.File("model.safetensors"));
  EXPECT_TRUE(Checkpoint::Open(folder_.path()).ok());
}

TEST_F(CheckpointTest, GenerationConfigOverridesTheEndTokens) {
  WriteWeights("model.safetensors", {"a"}, 1);
  folder_.Write("generation_config.json", R"({"eos_token_id": [5, 6], "temperature": 0.5})");
  const auto checkpoint = Checkpoint::Open(folder_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_THAT((*checkpoint)->eos_token_ids(), ElementsAre(5, 6));
  EXPECT_EQ((*checkpoint)->generation_config().temperature, 0.5f);
}

TEST_F(CheckpointTest, ReportsWhatIsMissing) {
  ExpectError(absl::StatusCode::kNotFound,
              {folder_.path(), "model.safetensors", "model.safetensors.index.json"});
  std::filesystem::remove(folder_.File("config.json"));
  ExpectError(absl::StatusCode::kNotFound, {folder_.File("config.json")});
  const absl::Status none = Checkpoint::Open(folder_.File("none")).status();
  EXPECT_EQ(none.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(none.message()), HasSubstr("found nothing"));
  const std::string file = folder_.Write("file", "");
  EXPECT_EQ(Checkpoint::Open(file).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(CheckpointTest, NamesTheMalformedFile) {
  WriteWeights("model.safetensors", {"a"}, 1);
  folder_.Write("config.json", R"({"model_type": "gemma"})");
  ExpectError(absl::StatusCode::kUnimplemented, {folder_.File("config.json"), "gemma"});
  folder_.Write("config.json", "not JSON");
  ExpectError(absl::StatusCode::kDataLoss, {folder_.File("config.json"), "JSON"});
  folder_.Write("config.json", "version https://git-lfs.github.com/spec/v1\n");
  ExpectError(absl::StatusCode::kDataLoss, {folder_.File("config.json"), "Git LFS pointer"});
  folder_.Write("config.json", kConfig);
  folder_.Write("model.safetensors", "short");
  ExpectError(absl::StatusCode::kDataLoss, {folder_.File("model.safetensors")});
}

TEST_F(CheckpointTest, WarnsOfIdsOutsideTheVocabularyInBothConfigs) {
  WriteWeights("model.safetensors", {"a"}, 1);
  std::string config = kConfig;
  config.replace(config.rfind("7}"), 2, "[7, 100]}");
  folder_.Write("config.json", config);
  folder_.Write("generation_config.json", R"({"eos_token_id": [100, -1], "top_p": 7})");
  const auto checkpoint = Checkpoint::Open(folder_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_THAT((*checkpoint)->eos_token_ids(), ElementsAre(7));
  EXPECT_THAT(
      (*checkpoint)->warnings(),
      ElementsAre(
          AllOf(HasSubstr(folder_.File("config.json")), HasSubstr("eos_token_id")),
          AllOf(HasSubstr(folder_.File("generation_config.json")), HasSubstr("top_p")),
          AllOf(HasSubstr(folder_.File("generation_config.json")), HasSubstr("eos_token_id"))));
}

TEST_F(CheckpointTest, AGenerationConfigThatIsNotJsonIsWarnedAboutAndNotUsed) {
  WriteWeights("model.safetensors", {"a"}, 1);
  folder_.Write("generation_config.json", R"({"eos_token_id": 5,})");
  const auto checkpoint = Checkpoint::Open(folder_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_THAT((*checkpoint)->eos_token_ids(), ElementsAre(7));
  EXPECT_THAT((*checkpoint)->warnings(),
              ElementsAre(AllOf(HasSubstr(folder_.File("generation_config.json")),
                                HasSubstr("JSON"), HasSubstr("not used"))));
}

TEST_F(CheckpointTest, SaysWhatAModeKeepsFromBeingRead) {
  ASSERT_EQ(chmod(folder_.path().c_str(), 0755), 0);
  WriteWeights("model.safetensors", {"a"}, 1);
  folder_.Write("generation_config.json", "{}");
  const auto open = [&] {
    return WithoutPrivileges([&] {
      const auto checkpoint = Checkpoint::Open(folder_.path());
      if (!checkpoint.ok()) return checkpoint.status().ToString();
      return (*checkpoint)->warnings().empty() ? "OK" : (*checkpoint)->warnings().front();
    });
  };
  EXPECT_EQ(open(), "OK");
  for (const char* name : {"model.safetensors", "config.json", "generation_config.json"}) {
    ASSERT_EQ(chmod(folder_.File(name).c_str(), 0200), 0);
    EXPECT_THAT(open(), AllOf(HasSubstr(folder_.File(name)), HasSubstr("Permission denied"),
                              HasSubstr("chmod a+r")));
    ASSERT_EQ(chmod(folder_.File(name).c_str(), 0644), 0);
  }
  // A folder that may not be entered, and one in it.
  ASSERT_EQ(chmod(folder_.path().c_str(), 0600), 0);
  EXPECT_THAT(open(), AllOf(HasSubstr("PERMISSION_DENIED"), HasSubstr("chmod a+rx")));
  EXPECT_THAT(WithoutPrivileges(
                  [&] { return Checkpoint::Open(folder_.File("inside")).status().ToString(); }),
              AllOf(HasSubstr("PERMISSION_DENIED"), HasSubstr("chmod a+rx")));
  ASSERT_EQ(chmod(folder_.path().c_str(), 0755), 0);
}

TEST_F(CheckpointTest, RejectsAnIndexWithoutAWeightMap) {
  WriteShards("{}");
  ExpectError(absl::StatusCode::kDataLoss, {kIndexName, "weight_map", "an empty one"});
  WriteShards("[]");
  ExpectError(absl::StatusCode::kDataLoss, {kIndexName, "weight_map", "an array"});
  folder_.Write(kIndexName, "{}");
  ExpectError(absl::StatusCode::kDataLoss, {kIndexName, "weight_map", "nothing"});
  folder_.Write(kIndexName, "[]");
  ExpectError(absl::StatusCode::kDataLoss, {kIndexName, "weight_map"});
  folder_.Write(kIndexName, "");
  ExpectError(absl::StatusCode::kDataLoss, {kIndexName, "JSON"});
}

TEST_F(CheckpointTest, RejectsShardNamesThatLeaveTheFolder) {
  for (const char* name :
       {"../model.safetensors", "/etc/passwd", "a/b", "..", ".", "", "a\\\\b", "a\\u0000b"}) {
    WriteShards(R"({"a": ")" + std::string(name) + R"("})");
    ExpectError(absl::StatusCode::kDataLoss, {kIndexName, "\"a\"", "same folder"});
  }
  WriteShards(R"({"a": 1})");
  ExpectError(absl::StatusCode::kDataLoss, {kIndexName, "\"a\"", "the number 1"});
}

TEST_F(CheckpointTest, AShardMattersWhenATensorInItIsNeeded) {
  const auto expect_missing = [&](absl::StatusCode code, const std::vector<std::string>& parts) {
    const auto checkpoint = Checkpoint::Open(folder_.path());
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    EXPECT_TRUE(GetTensor(**checkpoint, "a", {}, {1}).ok());
    const absl::Status status = GetTensor(**checkpoint, "b", {}, {1}).status();
    EXPECT_EQ(status.code(), code) << status;
    for (const std::string& part : parts) {
      EXPECT_THAT(std::string(status.message()), HasSubstr(part));
    }
  };
  WriteShards(GoodMap());
  std::filesystem::remove(folder_.File(kSecond));
  expect_missing(absl::StatusCode::kNotFound, {kIndexName, "\"b\"", kSecond});
  folder_.Write(kSecond, "version https://git-lfs.github.com/spec/v1\nsize 9\n");
  expect_missing(absl::StatusCode::kDataLoss, {kIndexName, "\"b\"", kSecond, "Git LFS"});
  WriteWeights(kSecond, {"z"}, 2);
  expect_missing(absl::StatusCode::kNotFound, {kSecond, "\"b\"", "missing", kIndexName});
}

TEST_F(CheckpointTest, ReportsThatNoShardCanBeUsed) {
  WriteShards(GoodMap());
  std::filesystem::remove(folder_.File(kFirst));
  std::filesystem::remove(folder_.File(kSecond));
  ExpectError(absl::StatusCode::kNotFound, {kIndexName, kFirst});
  folder_.Write(kFirst, "version https://git-lfs.github.com/spec/v1\nsize 9\n");
  folder_.Write(kSecond, "version https://git-lfs.github.com/spec/v1\nsize 9\n");
  ExpectError(absl::StatusCode::kDataLoss, {kIndexName, kFirst, "Git LFS pointer"});
}

// Two shards that hold what a test says, and their index.
class ShardsTest : public CheckpointTest {
 protected:
  std::shared_ptr<const Checkpoint> Open(const std::vector<std::string>& first,
                                         const std::vector<std::string>& second,
                                         const std::map<std::string, std::string>& weight_map) {
    WriteWeights(kFirst, first, 1);
    WriteWeights(kSecond, second, 2);
    folder_.Write(kIndexName, nlohmann::json({{"weight_map", weight_map}}).dump());
    auto checkpoint = Checkpoint::Open(folder_.path());
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    return checkpoint.ok() ? *std::move(checkpoint) : nullptr;
  }
};

constexpr const char* kNeeded = "model.layers.0.mlp.up_proj.weight";
constexpr const char* kAlsoNeeded = "model.norm.weight";
constexpr const char* kUnneeded[] = {"model.layers.1.mlp.up_proj.weight", "mtp.fc.weight",
                                     "model.layers.0.self_attn.rotary_emb.inv_freq",
                                     "vision.patch.weight"};

TEST_F(ShardsTest, WhatTheModelDoesNotNeedIsNobodysBusiness) {
  for (const char* name : kUnneeded) {
    SCOPED_TRACE(name);
    // Stored and not listed, listed and not stored, in a shard that is absent, twice.
    for (const auto& [first, second, listed] :
         {std::tuple(std::vector<std::string>{kNeeded, name}, std::vector<std::string>{"x"}, ""),
          std::tuple(std::vector<std::string>{kNeeded}, std::vector<std::string>{"x"}, kFirst),
          std::tuple(std::vector<std::string>{kNeeded}, std::vector<std::string>{"x"}, "absent"),
          std::tuple(std::vector<std::string>{kNeeded, name}, std::vector<std::string>{"x", name},
                     kSecond)}) {
      std::map<std::string, std::string> weight_map = {{kNeeded, kFirst}, {"x", kSecond}};
      if (*listed != '\0') weight_map[name] = listed;
      const auto checkpoint = Open(first, second, weight_map);
      ASSERT_NE(checkpoint, nullptr);
      EXPECT_THAT(checkpoint->warnings(), IsEmpty());
      EXPECT_THAT(ToFloatVector(*checkpoint->Find(kNeeded)), ElementsAre(1));
    }
  }
}

TEST_F(ShardsTest, ATensorThatTheIndexLacksIsTakenFromTheShardThatHasIt) {
  const auto checkpoint = Open({kNeeded}, {"x", kAlsoNeeded}, {{kNeeded, kFirst}, {"x", kSecond}});
  ASSERT_NE(checkpoint, nullptr);
  EXPECT_THAT(ToFloatVector(*checkpoint->Find(kAlsoNeeded)), ElementsAre(2));
  EXPECT_EQ(checkpoint->Describe(kAlsoNeeded), folder_.File(kSecond));
  EXPECT_THAT(checkpoint->warnings(),
              ElementsAre(AllOf(HasSubstr(folder_.File(kIndexName)), HasSubstr("does not list"),
                                HasSubstr(kAlsoNeeded), HasSubstr(kSecond))));
}

TEST_F(ShardsTest, ATensorThatIsNotWhereTheIndexSaysIsTakenFromTheShardThatHasIt) {
  for (const char* wrong : {kFirst, "model-00007-of-00002.safetensors"}) {
    const auto checkpoint = Open({kNeeded}, {"x", kAlsoNeeded},
                                 {{kNeeded, kFirst}, {"x", kSecond}, {kAlsoNeeded, wrong}});
    ASSERT_NE(checkpoint, nullptr);
    EXPECT_THAT(ToFloatVector(*checkpoint->Find(kAlsoNeeded)), ElementsAre(2));
    EXPECT_THAT(checkpoint->warnings(),
                ElementsAre(AllOf(HasSubstr(kIndexName), HasSubstr(kAlsoNeeded), HasSubstr(wrong),
                                  HasSubstr(kSecond))));
  }
}

TEST_F(ShardsTest, OfATensorInTwoShardsTheIndexedOneIsUsed) {
  for (const char* listed : {kFirst, kSecond}) {
    const auto checkpoint = Open({kNeeded, kAlsoNeeded}, {"x", kAlsoNeeded},
                                 {{kNeeded, kFirst}, {"x", kSecond}, {kAlsoNeeded, listed}});
    ASSERT_NE(checkpoint, nullptr);
    EXPECT_THAT(ToFloatVector(*checkpoint->Find(kAlsoNeeded)),
                ElementsAre(listed == kFirst ? 1 : 2));
    EXPECT_EQ(checkpoint->Describe(kAlsoNeeded), folder_.File(listed));
    EXPECT_THAT(checkpoint->warnings(),
                ElementsAre(AllOf(HasSubstr("stored twice"), HasSubstr(kAlsoNeeded))));
  }
}

TEST_F(ShardsTest, WarnsOnceOfManyTensors) {
  const auto checkpoint = Open({"model.layers.0.a.weight", "model.layers.0.b.weight", kNeeded},
                               {"x"}, {{kNeeded, kFirst}, {"x", kSecond}});
  ASSERT_NE(checkpoint, nullptr);
  EXPECT_THAT(checkpoint->warnings(),
              ElementsAre(AllOf(HasSubstr("model.layers.0.a.weight"), HasSubstr("1 more"))));
}

TEST_F(CheckpointTest, RejectsATensorTwiceInTheIndex) {
  WriteShards(R"({"a": "x", "a": "x"})");
  ExpectError(absl::StatusCode::kDataLoss, {kIndexName, "\"a\"", "twice"});
}

constexpr const char* kEmbedding = "model.embed_tokens.weight";
constexpr const char* kHead = "lm_head.weight";

// What the head is, by what config.json says and what is stored.
class HeadTest : public CheckpointTest {
 protected:
  struct Table {
    std::string name;
    std::vector<float> values;
    DType dtype = DType::kF32;
  };

  std::shared_ptr<const Checkpoint> Open(bool tied, const std::vector<Table>& tables) {
    nlohmann::json config = nlohmann::json::parse(kConfig);
    config["tie_word_embeddings"] = tied;
    folder_.Write("config.json", config.dump());
    std::vector<TensorToWrite> tensors;
    std::vector<std::vector<uint16_t>> halves;
    halves.reserve(tables.size());
    for (const Table& table : tables) {
      halves.emplace_back();
      for (const float value : table.values) halves.back().push_back(FloatToBf16(value));
      const auto* data = table.dtype == DType::kF32
                             ? reinterpret_cast<const uint8_t*>(table.values.data())
                             : reinterpret_cast<const uint8_t*>(halves.back().data());
      tensors.emplace_back(
          table.name,
          TensorView{table.dtype, {static_cast<int64_t>(table.values.size()), 1}, data});
    }
    EXPECT_TRUE(WriteSafetensors(folder_.File("model.safetensors"), tensors).ok());
    auto checkpoint = Checkpoint::Open(folder_.path());
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    return checkpoint.ok() ? *std::move(checkpoint) : nullptr;
  }
};

TEST_F(HeadTest, AStoredHeadThatDiffersIsTheHead) {
  for (const std::vector<float>& head : {std::vector<float>{1, 3}, std::vector<float>{1, 2, 3}}) {
    const auto checkpoint = Open(true, {{kEmbedding, {1, 2}}, {kHead, head}});
    ASSERT_NE(checkpoint, nullptr);
    EXPECT_FALSE(checkpoint->config().tie_word_embeddings);
    EXPECT_EQ(ToFloatVector(*checkpoint->Find(kHead)), head);
    EXPECT_THAT(checkpoint->warnings(),
                ElementsAre(AllOf(HasSubstr(folder_.File("config.json")),
                                  HasSubstr("tie_word_embeddings"), HasSubstr("lm_head"))));
  }
}

TEST_F(HeadTest, AnEqualCopyIsNoHead) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const auto checkpoint = Open(true, {{kEmbedding, {1, 2}}, {kHead, {1, 2}, dtype}});
    ASSERT_NE(checkpoint, nullptr);
    EXPECT_TRUE(checkpoint->config().tie_word_embeddings);
    EXPECT_EQ(checkpoint->Find(kHead), nullptr);
    EXPECT_THAT(checkpoint->tensor_names(), ElementsAre(kEmbedding));
    EXPECT_THAT(checkpoint->warnings(), IsEmpty());
  }
  // In another type, and different.
  EXPECT_FALSE(Open(true, {{kEmbedding, {1, 2}}, {kHead, {1, 4}, DType::kBF16}})
                   ->config()
                   .tie_word_embeddings);
}

TEST_F(HeadTest, AHeadAloneIsTheEmbeddingToo) {
  const auto checkpoint = Open(true, {{kHead, {1, 2}}});
  ASSERT_NE(checkpoint, nullptr);
  EXPECT_TRUE(checkpoint->config().tie_word_embeddings);
  EXPECT_THAT(checkpoint->tensor_names(), ElementsAre(kEmbedding));
  EXPECT_THAT(ToFloatVector(*checkpoint->Find(kEmbedding)), ElementsAre(1, 2));
  EXPECT_THAT(checkpoint->Describe(kEmbedding),
              AllOf(HasSubstr(folder_.File("model.safetensors")), HasSubstr(kHead)));
  EXPECT_THAT(checkpoint->warnings(), IsEmpty());
}

TEST_F(HeadTest, WhatIsNotTiedIsTakenAsItIsStored) {
  for (const std::vector<Table>& tables :
       {std::vector<Table>{{kEmbedding, {1, 2}}, {kHead, {1, 2}}},
        std::vector<Table>{{kEmbedding, {1, 2}}}, std::vector<Table>{{kHead, {1, 2}}}}) {
    const auto checkpoint = Open(false, tables);
    ASSERT_NE(checkpoint, nullptr);
    EXPECT_FALSE(checkpoint->config().tie_word_embeddings);
    EXPECT_EQ(checkpoint->tensor_names().size(), tables.size());
    EXPECT_THAT(checkpoint->warnings(), IsEmpty());
  }
}

TEST_F(HeadTest, AHeadInAnAbsentShardOfATiedModelIsWarnedAbout) {
  Open(true, {{kEmbedding, {1, 2}}});
  std::filesystem::rename(folder_.File("model.safetensors"), folder_.File(kFirst));
  folder_.Write(kIndexName,
                nlohmann::json({{"weight_map", {{kEmbedding, kFirst}, {kHead, kSecond}}}}).dump());
  const auto checkpoint = Checkpoint::Open(folder_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_TRUE((*checkpoint)->config().tie_word_embeddings);
  EXPECT_THAT((*checkpoint)->warnings(), ElementsAre(AllOf(HasSubstr(kHead), HasSubstr(kSecond))));
}

TEST(SampleModelTest, Opens) {
  const auto checkpoint = Checkpoint::Open(SAMPLE_MODEL_DIR);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  int64_t num_elements = 0;
  for (const std::string& name : (*checkpoint)->tensor_names()) {
    num_elements += (*checkpoint)->Find(name)->num_elements();
  }
  EXPECT_EQ(num_elements, NumParameters((*checkpoint)->config()));
  EXPECT_THAT((*checkpoint)->eos_token_ids(), ElementsAre(0));
}

}  // namespace
}  // namespace ultrasketch
