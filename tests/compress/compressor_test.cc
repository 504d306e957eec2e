// Compressing the sample checkpoint: the folder that comes out, and what does not.
#include "engine/compress/compressor.h"

#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "engine/base/file.h"
#include "engine/compress/accounting.h"
#include "engine/compress/cpu_fit_device.h"
#include "engine/format/json.h"
#include "engine/models/checkpoint_codec.h"

namespace ultrasketch {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::UnorderedElementsAre;

class CompressorTest : public testing::Test {
 public:
  CompressorTest()
      : folder_(fs::temp_directory_path() /
                absl::StrCat("compressor_test_", getpid(), "_",
                             testing::UnitTest::GetInstance()->current_test_info()->name())) {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  ~CompressorTest() override { fs::remove_all(folder_); }

  std::string Path(const std::string& name) const { return (folder_ / name).string(); }

  std::string WriteText(const std::string& name, const std::string& text) {
    std::ofstream(Path(name)) << text;
    return Path(name);
  }

  // Some varied sentences.
  std::string CalibrationFile() {
    std::ostringstream text;
    const char* subjects[] = {"The captain", "My sister", "An old man", "Nobody", "The horse"};
    const char* verbs[] = {"remembered", "crossed", "sold", "painted", "feared"};
    const char* objects[] = {"the river", "a letter", "his garden", "the long winter", "her song"};
    for (int i = 0; i < 125; ++i) {
      text << subjects[i % 5] << " " << verbs[i / 5 % 5] << " " << objects[i / 25 % 5]
           << (i % 3 == 0 ? ", and was silent.\n" : ". ");
    }
    return WriteText("text.txt", text.str());
  }

  CompressOptions QuickOptions() {
    CompressOptions options;
    options.calibration_files = {CalibrationFile()};
    options.calibration_windows = 6;
    options.calibration_window_tokens = 64;
    options.num_threads = 2;
    return options;
  }

  static std::shared_ptr<const Checkpoint> Sample() {
    auto checkpoint = Checkpoint::Open(SAMPLE_MODEL_DIR);
    return checkpoint.ok() ? *checkpoint : nullptr;
  }

  std::vector<std::string> FolderNames() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder_)) {
      if (entry.path().extension() != ".txt") names.push_back(entry.path().filename().string());
    }
    return names;
  }

  fs::path folder_;
};

TEST_F(CompressorTest, WritesAModelWithinTheTarget) {
  const auto report = CompressCheckpoint(Sample(), Path("out"), QuickOptions());
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_LE(report->bits_per_weight_linear, 0.5);
  EXPECT_GT(report->bits_per_weight_linear, 0.495);
  EXPECT_EQ(report->calibration_source, "files");
  EXPECT_GT(report->calibration_tokens, 100);
  EXPECT_EQ(report->sites.size(), 20u);
  for (const CompressedSite& site : report->sites) {
    EXPECT_GT(site.relative_output_error, 0.0) << site.name;
    EXPECT_LT(site.relative_output_error, 1.0) << site.name;
  }
  EXPECT_THAT(FolderNames(), UnorderedElementsAre("out"));

  const auto written = Checkpoint::Open(Path("out"));
  ASSERT_TRUE(written.ok()) << written.status();
  const auto size = MeasureModel(**written);
  ASSERT_TRUE(size.ok()) << size.status();
  EXPECT_EQ(size->bits_per_weight_linear, report->bits_per_weight_linear);
  EXPECT_EQ(size->bits_per_weight_file, report->bits_per_weight_file);
  EXPECT_EQ(size->file_bytes, report->bytes);
  int64_t file_bytes = 0;
  for (const auto& entry : fs::directory_iterator(Path("out"))) {
    file_bytes += static_cast<int64_t>(entry.file_size());
  }
  EXPECT_EQ(report->bytes, file_bytes);
  const auto codec = CheckpointCodec(**written);
  ASSERT_TRUE(codec.ok());
  EXPECT_EQ(*codec, "fold");
  for (const char* name : {"tokenizer.json", "generation_config.json"}) {
    EXPECT_EQ(*ReadFile(Path(absl::StrCat("out/", name))),
              *ReadFile(absl::StrCat(SAMPLE_MODEL_DIR, "/", name)));
  }
}

TEST_F(CompressorTest, DependsOnTheSeedAndNotOnTheThreads) {
  CompressOptions options = QuickOptions();
  options.num_threads = 1;
  ASSERT_TRUE(CompressCheckpoint(Sample(), Path("one"), options).ok());
  options.num_threads = 3;
  ASSERT_TRUE(CompressCheckpoint(Sample(), Path("three"), options).ok());
  options.seed = 1;
  ASSERT_TRUE(CompressCheckpoint(Sample(), Path("other"), options).ok());
  const std::string one = *ReadFile(Path("one/model.safetensors"));
  EXPECT_TRUE(one == *ReadFile(Path("three/model.safetensors")));
  EXPECT_FALSE(one == *ReadFile(Path("other/model.safetensors")));
}

TEST_F(CompressorTest, WritesItsOwnCalibrationTextWhereThereIsNone) {
  CompressOptions options = QuickOptions();
  options.calibration_files.clear();
  options.calibration_windows = 3;
  options.calibration_window_tokens = 20;
  const auto report = CompressCheckpoint(Sample(), Path("out"), options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->calibration_source, "self-generated");
  EXPECT_EQ(report->calibration_tokens, 60);
}

TEST_F(CompressorTest, FitsToTheWeightsAloneWithoutWindows) {
  CompressOptions options = QuickOptions();
  options.calibration_windows = 0;
  options.bits_per_weight = 0.25;
  const auto report = CompressCheckpoint(Sample(), Path("out"), options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->calibration_source, "none");
  EXPECT_EQ(report->calibration_tokens, 0);
  EXPECT_LE(report->bits_per_weight_linear, 0.25);
  // A sign for n random weights with random signs keeps about 2 / (pi n) of them; n is the inverse
  // of the bits per weight, but for side data.
  for (const CompressedSite& site : report->sites) {
    EXPECT_NEAR(site.relative_weight_error, 1 - 2 / std::numbers::pi * site.bits_per_weight, 0.12)
        << site.name;
  }
  EXPECT_TRUE(ToJson(*report)["sites"][0]["relative_output_error"].is_null());
}

TEST_F(CompressorTest, WarnsOfTooLittleTextAndMeasuresNothingOnIt) {
  CompressOptions options = QuickOptions();
  options.calibration_files = {WriteText("text.txt", "\n")};
  std::vector<std::string> warnings;
  options.on_warning = [&](std::string_view warning) { warnings.emplace_back(warning); };
  const auto report = CompressCheckpoint(Sample(), Path("out"), options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_THAT(warnings, testing::ElementsAre(testing::AllOf(
                            HasSubstr("1 token of calibration text in 1 window"),
                            HasSubstr("384 tokens in 6 windows"), HasSubstr("perplexity"))));
  EXPECT_EQ(report->warnings, warnings);
  const nlohmann::json json = ToJson(*report);
  EXPECT_EQ(json["warnings"].size(), 1u);
  for (const nlohmann::json& site : json["sites"]) {
    EXPECT_TRUE(site["relative_output_error"].is_null()) << site;
    EXPECT_TRUE(site["relative_residual_error"].is_null()) << site;
  }
}

TEST_F(CompressorTest, ADenseModelHasSixteenBits) {
  const auto size = MeasureModel(*Sample());
  ASSERT_TRUE(size.ok()) << size.status();
  EXPECT_EQ(size->bits_per_weight_linear, 16.0);
  EXPECT_EQ(size->linear_bytes, 2 * size->linear_weights);
  EXPECT_GT(size->bits_per_weight_file, 16.0);
  EXPECT_LT(size->bits_per_weight_file, 17.0);
}

TEST_F(CompressorTest, ReplacesACompressedModelOnlyWhenToldTo) {
  CompressOptions options = QuickOptions();
  options.calibration_windows = 0;
  fs::create_directory(Path("out"));
  ASSERT_TRUE(CompressCheckpoint(Sample(), Path("out"), options).ok());  // empty: fine
  const std::string before = *ReadFile(Path("out/model.safetensors"));
  options.seed = 1;

  const auto refused = CompressCheckpoint(Sample(), Path("out"), options);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_TRUE(*ReadFile(Path("out/model.safetensors")) == before);

  options.overwrite = true;
  ASSERT_TRUE(CompressCheckpoint(Sample(), Path("out"), options).ok());
  EXPECT_FALSE(*ReadFile(Path("out/model.safetensors")) == before);
  EXPECT_THAT(FolderNames(), UnorderedElementsAre("out"));
}

TEST_F(CompressorTest, NeverReplacesWhatIsNoCompressedModel) {
  CompressOptions options = QuickOptions();
  options.calibration_windows = 0;
  options.overwrite = true;
  fs::create_directories(Path("home"));
  WriteText("home/notes.txt", "mine");
  fs::copy(SAMPLE_MODEL_DIR, Path("dense"));
  WriteText("file", "mine");
  fs::create_symlink("nothing", Path("link"));
  for (const char* name : {"home", "dense", "file", "link"}) {
    EXPECT_EQ(CompressCheckpoint(Sample(), Path(name), options).status().code(),
              absl::StatusCode::kFailedPrecondition)
        << name;
  }
  EXPECT_EQ(*ReadFile(Path("home/notes.txt")), "mine");
  EXPECT_EQ(*ReadFile(Path("file")), "mine");
}

TEST_F(CompressorTest, NeverReplacesTheTextThatItReads) {
  CompressOptions options = QuickOptions();
  options.calibration_windows = 0;
  ASSERT_TRUE(CompressCheckpoint(Sample(), Path("out"), options).ok());
  options.overwrite = true;
  options.calibration_windows = 2;
  options.calibration_files = {WriteText("out/text.txt", "Some text.")};
  EXPECT_EQ(CompressCheckpoint(Sample(), Path("out"), options).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(fs::exists(Path("out/text.txt")));
}

TEST_F(CompressorTest, FollowsALinkToTheOutputFolder) {
  CompressOptions options = QuickOptions();
  options.calibration_windows = 0;
  fs::create_directories(Path("real"));
  fs::create_symlink("real", Path("link"));
  ASSERT_TRUE(CompressCheckpoint(Sample(), Path("link"), options).ok());
  EXPECT_TRUE(fs::is_symlink(Path("link")));
  EXPECT_TRUE(Checkpoint::Open(Path("real")).ok());
}

TEST_F(CompressorTest, LeavesAFolderThatIsNotItsOwnAlone) {
  fs::create_directories(Path("out.partial/photos"));
  WriteText("out.partial/photos/one", "precious");
  EXPECT_EQ(CompressCheckpoint(Sample(), Path("out"), QuickOptions()).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(*ReadFile(Path("out.partial/photos/one")), "precious");

  fs::create_directories(Path("important"));
  WriteText("important/lock", "precious");
  fs::create_symlink("important", Path("other.partial"));
  EXPECT_EQ(CompressCheckpoint(Sample(), Path("other"), QuickOptions()).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(*ReadFile(Path("important/lock")), "precious");
}

TEST_F(CompressorTest, TakesFilesWhoseNamesAreNoText) {
  CompressOptions options = QuickOptions();
  const std::string name = Path("caf\xe9.txt");
  fs::rename(options.calibration_files[0], name);
  options.calibration_files = {name};
  const auto report = CompressCheckpoint(Sample(), Path("out\xff"), options);
  EXPECT_TRUE(report.ok()) << report.status();
}

TEST_F(CompressorTest, AnotherSeedThanTheWeightsHaveIsFound) {
  for (const char* codec : {"fold", "absmaxmin"}) {
    CompressOptions options = QuickOptions();
    options.codec = codec;
    options.calibration_windows = 0;
    options.overwrite = true;
    options.seed = 7;
    ASSERT_TRUE(CompressCheckpoint(Sample(), Path("out"), options).ok());
    auto config = ReadJsonFile(Path("out/config.json"));
    ASSERT_TRUE(config.ok());
    (*config)["quantization_config"]["seed"] = 8;
    WriteText("out/config.json", config->dump());
    const auto opened = Checkpoint::Open(Path("out"));
    EXPECT_EQ(opened.status().code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(
        std::string(opened.status().message()),
        testing::AllOf(HasSubstr("quantization_config.seed"), HasSubstr("7"), HasSubstr("8")));
  }
}

TEST_F(CompressorTest, NeverReplacesTheModelThatItReads) {
  fs::create_directories(Path("models"));
  fs::copy(SAMPLE_MODEL_DIR, Path("models/dense"));
  const auto checkpoint = Checkpoint::Open(Path("models/dense"));
  ASSERT_TRUE(checkpoint.ok());
  CompressOptions options = QuickOptions();
  options.calibration_windows = 0;
  options.overwrite = true;
  for (const char* name : {"models/dense", "models/dense/", "models", "models/../models/dense"}) {
    EXPECT_EQ(CompressCheckpoint(*checkpoint, Path(name), options).status().code(),
              absl::StatusCode::kInvalidArgument)
        << name;
  }
  EXPECT_TRUE(fs::exists(Path("models/dense/model.safetensors")));
}

TEST_F(CompressorTest, CancellingBeforeALayerIsFinishedLeavesNothingBehind) {
  std::atomic<bool> cancelled = false;
  CompressOptions options = QuickOptions();
  options.cancelled = &cancelled;
  options.progress = [&](const CompressProgress& progress) {
    if (progress.stage == "model.layers.0.mlp_input") cancelled = true;
  };
  EXPECT_EQ(CompressCheckpoint(Sample(), Path("out"), options).status().code(),
            absl::StatusCode::kCancelled);
  EXPECT_THAT(FolderNames(), IsEmpty());
}

// Ends a compression to Path("out") in its third layer.
void Interrupt(CompressorTest& test, CompressOptions options, const std::string& out) {
  std::atomic<bool> cancelled = false;
  options.cancelled = &cancelled;
  options.progress = [&](const CompressProgress& progress) {
    if (progress.stage == "model.layers.2.mlp_input") cancelled = true;
  };
  const auto report = CompressCheckpoint(test.Sample(), out, options);
  EXPECT_EQ(report.status().code(), absl::StatusCode::kCancelled);
  EXPECT_THAT(std::string(report.status().message()),
              testing::AllOf(HasSubstr("2 of "), HasSubstr("out.partial")));
}

TEST_F(CompressorTest, AnInterruptedCompressionResumes) {
  CompressOptions options = QuickOptions();
  ASSERT_TRUE(CompressCheckpoint(Sample(), Path("whole"), options).ok());
  Interrupt(*this, options, Path("out"));
  EXPECT_THAT(FolderNames(), UnorderedElementsAre("whole", "out.partial"));

  options.resume = true;
  options.num_threads = 1;
  const auto report = CompressCheckpoint(Sample(), Path("out"), options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->resumed_layers, 2);
  EXPECT_GT(report->sites[0].relative_output_error, 0);
  EXPECT_THAT(FolderNames(), UnorderedElementsAre("whole", "out"));
  EXPECT_TRUE(*ReadFile(Path("out/model.safetensors")) ==
              *ReadFile(Path("whole/model.safetensors")));
}

// Turns over a bit of the last byte of a file.
void Damage(const std::string& path) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(-1, std::ios::end);
  const char last = static_cast<char>(file.get() ^ 1);
  file.seekp(-1, std::ios::end);
  file.put(last);
}

TEST_F(CompressorTest, ResumesOnlyTheSameWork) {
  fs::copy(SAMPLE_MODEL_DIR, Path("model"));
  CompressOptions options = QuickOptions();
  Interrupt(*this, options, Path("out"));
  options.resume = true;
  const auto expect_refusal = [&](const CompressOptions& changed, std::vector<std::string> parts) {
    const auto other = CompressCheckpoint(*Checkpoint::Open(Path("model")), Path("out"), changed);
    EXPECT_EQ(other.status().code(), absl::StatusCode::kFailedPrecondition);
    for (const std::string& part : parts) {
      EXPECT_THAT(std::string(other.status().message()), HasSubstr(part));
    }
  };
  CompressOptions changed = options;
  changed.bits_per_weight = 0.6;
  expect_refusal(changed, {"bits", "0.5", "0.6"});
  changed = options;
  changed.codec = "absmaxmin";
  expect_refusal(changed, {"another compression"});
  // Of the same size.
  changed = options;
  std::string text = *ReadFile(options.calibration_files[0]);
  text[text.size() / 2] = text[text.size() / 2] == 'x' ? 'y' : 'x';
  changed.calibration_files = {WriteText("other.txt", text)};
  expect_refusal(changed, {"calibration_files"});
  Damage(Path("model/model.safetensors"));
  expect_refusal(options, {"model"});
  EXPECT_TRUE(fs::exists(Path("out.partial/layer-00001.safetensors")));
}

TEST_F(CompressorTest, ResumesWhatHasMovedElsewhere) {
  CompressOptions options = QuickOptions();
  Interrupt(*this, options, Path("out"));
  fs::copy(SAMPLE_MODEL_DIR, Path("model"));
  fs::rename(options.calibration_files[0], Path("moved.txt"));
  fs::rename(Path("out.partial"), Path("elsewhere.partial"));
  options.calibration_files = {Path("moved.txt")};
  options.resume = true;
  const auto report =
      CompressCheckpoint(*Checkpoint::Open(Path("model")), Path("elsewhere"), options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->resumed_layers, 2);
}

TEST_F(CompressorTest, ADamagedLayerIsFittedAgain) {
  CompressOptions options = QuickOptions();
  ASSERT_TRUE(CompressCheckpoint(Sample(), Path("whole"), options).ok());
  Interrupt(*this, options, Path("out"));
  Damage(Path("out.partial/layer-00001.safetensors"));
  options.resume = true;
  const auto report = CompressCheckpoint(Sample(), Path("out"), options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->resumed_layers, 1);
  EXPECT_TRUE(*ReadFile(Path("out/model.safetensors")) ==
              *ReadFile(Path("whole/model.safetensors")));
}

TEST_F(CompressorTest, WithoutResumingItStartsAgain) {
  CompressOptions options = QuickOptions();
  Interrupt(*this, options, Path("out"));
  const auto report = CompressCheckpoint(Sample(), Path("out"), options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->resumed_layers, 0);
  EXPECT_THAT(FolderNames(), UnorderedElementsAre("out"));
}

TEST_F(CompressorTest, ResumingNothingStartsAtTheStart) {
  CompressOptions options = QuickOptions();
  options.resume = true;
  const auto report = CompressCheckpoint(Sample(), Path("out"), options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->resumed_layers, 0);
}

TEST_F(CompressorTest, EstimatesMemoryThatGrowsWithTheTextAndNotWithTheLayers) {
  const ModelConfig config = Sample()->config();
  CompressOptions options = QuickOptions();
  ThreadPool pool(1);
  const auto device = MakeCpuFitDevice(pool);
  const auto estimate = [&](const ModelConfig& of) {
    return EstimateCompressionMemory(of, Sample()->file_bytes(), options, *device).host_bytes;
  };
  const int64_t little = estimate(config);
  options.calibration_windows *= 100;
  const int64_t more_text = estimate(config);
  EXPECT_GT(more_text, little + 594 * 64 * config.hidden_size * 8);
  ModelConfig deep = config;
  deep.num_layers *= 10;
  EXPECT_LT(estimate(deep), 2 * more_text);
}

TEST_F(CompressorTest, NamesDevicesThatAreNotThere) {
  CompressOptions options = QuickOptions();
  options.device = "gpu";
  EXPECT_EQ(CompressCheckpoint(Sample(), Path("out"), options).status().message(),
            "device \"gpu\": expected \"auto\", \"cpu\", \"cuda\" or \"cuda:N\"");
  options.device = "cuda:999";
  const absl::Status status = CompressCheckpoint(Sample(), Path("out"), options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("device \"cuda:999\": no CUDA device 999"));
  EXPECT_THAT(FolderNames(), IsEmpty());
}

TEST_F(CompressorTest, ProgressNeverFalls) {
  double last = 0;
  int num_reports = 0;
  CompressOptions options = QuickOptions();
  options.progress = [&](const CompressProgress& progress) {
    EXPECT_FALSE(progress.stage.empty());
    EXPECT_GE(progress.fraction, last);
    EXPECT_LE(progress.fraction, 1.0);
    last = progress.fraction;
    ++num_reports;
  };
  ASSERT_TRUE(CompressCheckpoint(Sample(), Path("out"), options).ok());
  EXPECT_GT(num_reports, 20);
}

TEST_F(CompressorTest, RefusesWhatMakesNoSense) {
  const auto code = [&](const CompressOptions& options) {
    return CompressCheckpoint(Sample(), Path("out"), options).status().code();
  };
  CompressOptions options = QuickOptions();
  options.codec = "dense";
  EXPECT_EQ(code(options), absl::StatusCode::kInvalidArgument);
  for (const double bits : {0.0, -1.0, HUGE_VAL, std::nan("")}) {
    options = QuickOptions();
    options.bits_per_weight = bits;
    EXPECT_EQ(code(options), absl::StatusCode::kInvalidArgument) << bits;
  }
  for (const double bits : {0.001, 17.0}) {
    options = QuickOptions();
    options.bits_per_weight = bits;
    // Before the text is looked at.
    options.calibration_files = {Path("absent.txt")};
    EXPECT_EQ(code(options), absl::StatusCode::kOutOfRange) << bits;
  }
  options = QuickOptions();
  options.calibration_windows = std::numeric_limits<int64_t>::max() / 2;
  EXPECT_EQ(code(options), absl::StatusCode::kInvalidArgument);
  options = QuickOptions();
  options.codec = "absmaxmin";
  options.absmaxmin_hash_rows = 9;
  EXPECT_EQ(code(options), absl::StatusCode::kInvalidArgument);
  options = QuickOptions();
  options.calibration_files = {Path("absent.txt")};
  EXPECT_EQ(code(options), absl::StatusCode::kNotFound);
  options.calibration_files = {WriteText("empty.txt", "")};
  EXPECT_EQ(code(options), absl::StatusCode::kInvalidArgument);
  options.calibration_files = {WriteText("latin1.txt", "caf\xe9 na\xefve")};
  EXPECT_EQ(code(options), absl::StatusCode::kInvalidArgument);
  options.calibration_files = {WriteText("text.xz", "this is no archive")};
  EXPECT_EQ(code(options), absl::StatusCode::kDataLoss);
  EXPECT_FALSE(fs::exists(Path("out")));
}

TEST_F(CompressorTest, RefusesACompressedModel) {
  CompressOptions options = QuickOptions();
  options.calibration_windows = 0;
  ASSERT_TRUE(CompressCheckpoint(Sample(), Path("once"), options).ok());
  const auto once = Checkpoint::Open(Path("once"));
  ASSERT_TRUE(once.ok()) << once.status();
  const auto twice = CompressCheckpoint(*once, Path("twice"), options);
  EXPECT_EQ(twice.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(twice.status().message()), HasSubstr("uncompressed"));
}

}  // namespace
}  // namespace ultrasketch
