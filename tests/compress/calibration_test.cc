#include "engine/compress/calibration.h"

#include <lzma.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

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
    return ReadCalibration(files, *tokenizer_, windows, tokens);
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
