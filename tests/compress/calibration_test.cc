#include "engine/compress/calibration.h"

#include <lzma.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "engine/base/file.h"
#include "engine/compress/text_file.h"

namespace ultrasketch {
namespace {

namespace fs = std::filesystem;

class CalibrationTest : public testing::Test {
 protected:
  CalibrationTest()
      : folder_(fs::temp_directory_path() /
                absl::StrCat("calibration_test_", getpid(), "_",
                             testing::UnitTest::GetInstance()->current_test_info()->name())) {
    fs::create_directories(folder_);
  }
  ~CalibrationTest() override { fs::remove_all(folder_); }

  void SetUp() override {
    auto tokenizer = Tokenizer::Load(std::string(SAMPLE_MODEL_DIR) + "/tokenizer.json");
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
  }

  std::string Write(const std::string& name, const std::string& contents) const {
    const std::string path = (folder_ / name).string();
    std::ofstream(path, std::ios::binary) << contents;
    return path;
  }

  static std::string Compress(const std::string& text) {
    std::string archive(text.size() + 1024, '\0');
    size_t size = 0;
    EXPECT_EQ(lzma_easy_buffer_encode(
                  1, LZMA_CHECK_CRC32, nullptr, reinterpret_cast<const uint8_t*>(text.data()),
                  text.size(), reinterpret_cast<uint8_t*>(archive.data()), &size, archive.size()),
              LZMA_OK);
    archive.resize(size);
    return archive;
  }

  // Numbered lines, with characters of several bytes.
  static std::string Lines(int count) {
    std::string text;
    for (int i = 0; i < count; ++i) absl::StrAppend(&text, "Line ", i, " of the café’s book.\n");
    return text;
  }

  absl::StatusOr<CalibrationText> Read(const std::vector<std::string>& files, int64_t windows,
                                       int64_t tokens) const {
    return ReadCalibration(files, *tokenizer_, windows, tokens, /*add_special_tokens=*/true);
  }

  std::string Decode(const std::vector<int32_t>& window) const {
    return tokenizer_->Decode(window, false);
  }

  fs::path folder_;
  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_F(CalibrationTest, ReadsAllOfAShortText) {
  const std::string text = Lines(5);
  const auto calibration = Read({Write("a.txt", text)}, 100, 16);
  ASSERT_TRUE(calibration.ok()) << calibration.status();
  std::string all;
  for (const auto& window : calibration->windows) {
    EXPECT_LE(window.size(), 16u);
    all += Decode(window);
  }
  EXPECT_EQ(all, text);
}

TEST_F(CalibrationTest, SpreadsWindowsOverALongText) {
  const auto calibration = Read({Write("a.txt", Lines(4000))}, 10, 32);
  ASSERT_TRUE(calibration.ok()) << calibration.status();
  ASSERT_EQ(calibration->windows.size(), 10u);
  int last_line = -1;
  for (size_t i = 0; i < 10; ++i) {
    ASSERT_EQ(calibration->windows[i].size(), 32u);
    const std::string text = Decode(calibration->windows[i]);
    EXPECT_THAT(text, testing::StartsWith("Line "));  // at the start of a line
    const int line = std::stoi(text.substr(5));
    EXPECT_NEAR(line, 400 * static_cast<int>(i), 60);
    EXPECT_GT(line, last_line);
    last_line = line;
  }
}

TEST_F(CalibrationTest, SpreadsWindowsOverAllFiles) {
  const auto calibration = Read({Write("a.txt", Lines(1000)), Write("b.txt", Lines(3000))}, 8, 32);
  ASSERT_TRUE(calibration.ok()) << calibration.status();
  ASSERT_EQ(calibration->windows.size(), 8u);
  EXPECT_EQ(std::stoi(Decode(calibration->windows[0]).substr(5)), 0);
  EXPECT_GT(std::stoi(Decode(calibration->windows[1]).substr(5)), 400);
  EXPECT_LT(std::stoi(Decode(calibration->windows[2]).substr(5)), 100);
}

TEST_F(CalibrationTest, CutsOneLongLineBetweenCharacters) {
  std::string text;
  for (int i = 0; i < 20000; ++i) text += "é’";
  const auto calibration = Read({Write("a.txt", text)}, 7, 16);
  ASSERT_TRUE(calibration.ok()) << calibration.status();
  EXPECT_EQ(calibration->windows.size(), 7u);
}

// Every window is a text of its own, and begins as one. What the template puts behind a text is no
// part of a window that goes on.
TEST_F(CalibrationTest, WindowsBeginWithTheTemplatesTokens) {
  nlohmann::json document =
      nlohmann::json::parse(*ReadFile(std::string(TEST_DATA_DIR) + "/tokenizer/metaspace.json"));
  const nlohmann::json token = {{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}};
  document["post_processor"]["single"].push_back(token);
  tokenizer_ = *Tokenizer::FromJson(document, "tokenizer.json");
  for (const int lines : {20, 4000}) {
    const std::string path = Write("a.txt", Lines(lines));
    const auto with = ReadCalibration({path}, *tokenizer_, 8, 32, true);
    ASSERT_TRUE(with.ok()) << with.status();
    EXPECT_EQ(with->windows.size(), 8u);
    for (const auto& window : with->windows) {
      EXPECT_EQ(window.size(), 32u);
      EXPECT_EQ(window[0], 1);
      EXPECT_EQ(std::count(window.begin(), window.end(), 1), 1);
    }
    const auto without = ReadCalibration({path}, *tokenizer_, 8, 32, false);
    ASSERT_TRUE(without.ok()) << without.status();
    for (const auto& window : without->windows) {
      EXPECT_EQ(window.size(), 32u);
      EXPECT_EQ(std::count(window.begin(), window.end(), 1), 0);
    }
  }
}

TEST(CalibrationWarningTest, SaysWhatWasFoundAndWhatWasAskedFor) {
  const auto text = [](size_t windows, size_t tokens) {
    return CalibrationText{
        std::vector<std::vector<int32_t>>(windows, std::vector<int32_t>(tokens))};
  };
  EXPECT_EQ(CalibrationWarning(text(128, 512), 128, 512), "");
  EXPECT_EQ(CalibrationWarning(text(128, 511), 128, 512), "");
  EXPECT_THAT(CalibrationWarning(text(100, 512), 128, 512),
              testing::AllOf(testing::HasSubstr("51200 tokens of calibration text in 100 windows"),
                             testing::HasSubstr("65536 tokens in 128 windows"),
                             testing::Not(testing::HasSubstr("perplexity"))));
  EXPECT_THAT(CalibrationWarning(text(128, 256), 128, 512),
              testing::HasSubstr("32768 tokens of calibration text in 128 windows"));
  EXPECT_THAT(
      CalibrationWarning(text(1, 1), 128, 512),
      testing::AllOf(testing::HasSubstr("1 token of calibration text in 1 window;"),
                     testing::HasSubstr("fewer than 2048"), testing::HasSubstr("perplexity")));
  EXPECT_THAT(CalibrationWarning(text(4, 64), 4, 64),
              testing::AllOf(testing::HasSubstr("256 tokens of calibration text in 4 windows;"),
                             testing::HasSubstr("perplexity")));
}

TEST_F(CalibrationTest, ReadsArchivesLikeTheirText) {
  const std::string text = Lines(3000);
  const auto plain = Read({Write("a.txt", text)}, 9, 40);
  const auto archive = Read({Write("a.txt.xz", Compress(text))}, 9, 40);
  // Two streams in one file, as xz's --block-size or cat make them.
  const auto joined = Read(
      {Write("b.txt.xz", Compress(text.substr(0, 30001)) + Compress(text.substr(30001)))}, 9, 40);
  ASSERT_TRUE(plain.ok() && archive.ok() && joined.ok());
  EXPECT_EQ(archive->windows, plain->windows);
  EXPECT_EQ(joined->windows, plain->windows);
}

TEST_F(CalibrationTest, RefusesDamagedArchives) {
  const std::string archive = Compress(Lines(3000));
  std::string flipped = archive;
  flipped[archive.size() / 2] = static_cast<char>(flipped[archive.size() / 2] ^ 0x10);
  for (const std::string& contents :
       {std::string(), archive.substr(0, archive.size() - 20), archive + "tail!", flipped}) {
    const std::string path = Write("a.xz", contents);
    const auto calibration = Read({path}, 9, 40);
    EXPECT_EQ(calibration.status().code(), absl::StatusCode::kDataLoss) << contents.size();
    EXPECT_THAT(std::string(calibration.status().message()), testing::HasSubstr(path));
  }
}

TEST_F(CalibrationTest, SkipsToTheEndAndNoFurther) {
  const auto file = TextFile::Open(Write("a.txt", "abcdef"));
  ASSERT_TRUE(file.ok());
  EXPECT_EQ(*(*file)->Skip(2), 2);
  char out[3];
  EXPECT_EQ(*(*file)->Read(out, 3), 3);
  EXPECT_EQ(std::string(out, 3), "cde");
  EXPECT_EQ(*(*file)->Skip(1000), 1);
  EXPECT_EQ(*(*file)->Read(out, 3), 0);
}

}  // namespace
}  // namespace ultrasketch
