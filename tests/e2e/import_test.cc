// From a GGUF file to text: `ultrasketch import-gguf` and what the folder is good for.
#include <filesystem>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/base/file.h"
#include "engine/format/checkpoint.h"
#include "engine/format/json.h"
#include "tests/e2e/tool.h"
#include "tests/format/gguf/gguf_of_checkpoint.h"

namespace ultrasketch {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

class ImportTest : public ::testing::Test {
 protected:
  // The sample model as a GGUF file.
  void SetUp() override {
    const auto checkpoint = Checkpoint::Open(SAMPLE_MODEL_DIR);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    AddModel(**checkpoint, writer_);
    const auto tokenizer = ReadJsonFile((*checkpoint)->tokenizer_path());
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    AddTokenizer(*tokenizer, "smaug-bpe", writer_);
    writer_.Uint32("tokenizer.ggml.bos_token_id", 0);
    writer_.Uint32("tokenizer.ggml.eos_token_id", 0);
    WriteFile();
  }

  void WriteFile() { ASSERT_TRUE(WriteFileAtomically(file_, writer_.Write()).ok()); }

  const TemporaryFolder folder_;
  const std::string file_ = folder_.path() + "/sample.gguf";
  const std::string out_ = folder_.path() + "/out";
  GgufWriter writer_;
};

TEST_F(ImportTest, TheImportedModelWritesTheSameText) {
  const Completed run = RunTool({"import-gguf", file_, out_, "--json"});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(run.err, IsEmpty());
  const auto report = ParseOutput(run);
  EXPECT_EQ(report["architecture"], "llama");
  EXPECT_EQ(report["dtype"], "bfloat16");
  EXPECT_GT(report["parameters"], 1'000'000);
  EXPECT_GT(report["bytes"], 1'000'000);
  EXPECT_TRUE(report["warnings"].empty());

  const auto generate = [](const std::string& model) {
    const Completed generation =
        RunTool({"generate", "--model", model, "--prompt", "It was a dark night", "--max-tokens",
                 "24", "--temperature", "0", "--json"});
    EXPECT_EQ(generation.exit_code, 0) << generation.err;
    return ParseOutput(generation);
  };
  const auto imported = generate(out_);
  const auto original = generate(SAMPLE_MODEL_DIR);
  EXPECT_EQ(imported["token_ids"], original["token_ids"]);
  EXPECT_EQ(imported["text"], original["text"]);

  // The folder is there now.
  const Completed again = RunTool({"import-gguf", file_, out_});
  EXPECT_EQ(again.exit_code, 1);
  EXPECT_THAT(again.err, HasSubstr("expected no such folder"));
}

TEST_F(ImportTest, WarnsOfASplitThatIsAGuessUnlessToldIt) {
  writer_.RemoveKey("tokenizer.ggml.pre");
  WriteFile();
  const Completed guessed = RunTool({"import-gguf", file_, out_});
  ASSERT_EQ(guessed.exit_code, 0) << guessed.err;
  EXPECT_THAT(guessed.err, HasSubstr("warning: tokenizer.ggml.pre is absent"));
  EXPECT_THAT(guessed.out, HasSubstr("parameters"));
  std::filesystem::remove_all(out_);
  const Completed told =
      RunTool({"import-gguf", file_, out_, "--pre", "smaug-bpe", "--dtype", "f32"});
  ASSERT_EQ(told.exit_code, 0) << told.err;
  EXPECT_THAT(told.err, IsEmpty());
  EXPECT_THAT(told.out, HasSubstr("float32"));
}

TEST_F(ImportTest, ATruncatedFileLeavesNothing) {
  std::filesystem::resize_file(file_, std::filesystem::file_size(file_) / 2);
  const Completed run = RunTool({"import-gguf", file_, out_, "--json"});
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_EQ(ParseOutput(run)["error"]["code"], "DATA_LOSS");
  EXPECT_THAT(run.err, HasSubstr("truncated or corrupt"));
  for (const auto& entry : std::filesystem::directory_iterator(folder_.path())) {
    EXPECT_EQ(entry.path().filename(), "sample.gguf");
  }
}

TEST_F(ImportTest, AFileBeyondTheSizeLimitLeavesNothing) {
  // 512 KiB; the weights are larger.
  const Completed run = RunProgram({"/bin/sh", "-c", "ulimit -f 1024; exec \"$0\" \"$@\"",
                                    ULTRASKETCH_BINARY, "import-gguf", file_, out_});
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_THAT(run.err, HasSubstr("File too large"));
  for (const auto& entry : std::filesystem::directory_iterator(folder_.path())) {
    EXPECT_EQ(entry.path().filename(), "sample.gguf");
  }
}

}  // namespace
}  // namespace ultrasketch
