#include "engine/format/checkpoint.h"

#include <filesystem>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/file.h"
#include "tests/base/temporary_folder.h"

namespace ultrasketch {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

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
  folder_.Write("generation_config.json", R"({"top_p": 7})");
  ExpectError(absl::StatusCode::kDataLoss, {folder_.File("generation_config.json"), "top_p"});
  folder_.Write("config.json", R"({"model_type": "gemma"})");
  ExpectError(absl::StatusCode::kUnimplemented, {folder_.File("config.json"), "gemma"});
  folder_.Write("config.json", "not JSON");
  ExpectError(absl::StatusCode::kDataLoss, {folder_.File("config.json"), "JSON"});
  folder_.Write("config.json", kConfig);
  std::filesystem::remove(folder_.File("generation_config.json"));
  folder_.Write("model.safetensors", "short");
  ExpectError(absl::StatusCode::kDataLoss, {folder_.File("model.safetensors")});
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

TEST_F(CheckpointTest, ReportsAnAbsentShard) {
  WriteShards(GoodMap());
  std::filesystem::remove(folder_.File(kSecond));
  ExpectError(absl::StatusCode::kNotFound, {kIndexName, "\"b\"", kSecond});
}

TEST_F(CheckpointTest, RejectsATensorThatItsShardLacks) {
  WriteShards(GoodMap());
  WriteWeights(kSecond, {"z"}, 2);
  ExpectError(absl::StatusCode::kDataLoss, {kSecond, "\"b\"", "missing", kIndexName});
}

TEST_F(CheckpointTest, RejectsATensorThatTheIndexLacks) {
  WriteShards(GoodMap());
  WriteWeights(kSecond, {"b", "extra"}, 2);
  ExpectError(absl::StatusCode::kDataLoss, {kSecond, "\"extra\"", "does not list it"});
}

TEST_F(CheckpointTest, RejectsATensorInTwoShards) {
  WriteShards(GoodMap());
  WriteWeights(kSecond, {"a", "b"}, 2);
  ExpectError(absl::StatusCode::kDataLoss, {kSecond, "\"a\"", kFirst});
}

TEST_F(CheckpointTest, RejectsATensorTwiceInTheIndex) {
  WriteShards(R"({"a": "x", "a": "x"})");
  ExpectError(absl::StatusCode::kDataLoss, {kIndexName, "\"a\"", "twice"});
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
