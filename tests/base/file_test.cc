#include "engine/base/file.h"

#include <fcntl.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <filesystem>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include <sys/resource.h>
#include <sys/stat.h>

#include "engine/base/status.h"
#include "tests/base/temporary_folder.h"
#include "tests/base/without_privileges.h"

namespace ultrasketch {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

// Makes writes past `bytes` of a file fail with EFBIG, as a full disk makes them fail.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    getrlimit(RLIMIT_FSIZE, &old_limit_);
    rlimit limit = old_limit_;
    limit.rlim_cur = bytes;
    setrlimit(RLIMIT_FSIZE, &limit);
    old_handler_ = std::signal(SIGXFSZ, SIG_IGN);
  }
  ~FileSizeLimit() {
    setrlimit(RLIMIT_FSIZE, &old_limit_);
    std::signal(SIGXFSZ, old_handler_);
  }

 private:
  rlimit old_limit_ = {};
  void (*old_handler_)(int) = SIG_DFL;
};

TEST(MappedFileTest, MapsTheWholeFile) {
  const TemporaryFolder folder;
  std::string contents(100'001, 'x');
  contents[0] = 'a';
  contents.back() = 'z';
  const auto file = MappedFile::Open(folder.Write("file", contents));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->path(), folder.File("file"));
  ASSERT_EQ((*file)->size(), 100'001);
  EXPECT_EQ(std::memcmp((*file)->data(), contents.data(), contents.size()), 0);
}

TEST(MappedFileTest, AnEmptyFileHasNoData) {
  const TemporaryFolder folder;
  const auto file = MappedFile::Open(folder.Write("file", ""));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->size(), 0);
  EXPECT_EQ((*file)->data(), nullptr);
}

TEST(MappedFileTest, SurvivesReplacementAndRemovalOfTheFile) {
  const TemporaryFolder folder;
  const auto file = MappedFile::Open(folder.Write("file", "old"));
  ASSERT_TRUE(file.ok());
  ASSERT_TRUE(WriteFileAtomically(folder.File("file"), "new contents").ok());
  EXPECT_EQ(std::memcmp((*file)->data(), "old", 3), 0);
  std::filesystem::remove(folder.File("file"));
  EXPECT_EQ(std::memcmp((*file)->data(), "old", 3), 0);
}

// Both ways of reading refuse the same things.
class OpenErrorTest : public ::testing::TestWithParam<bool> {
 protected:
  absl::Status StatusOf(const std::string& path) {
    return GetParam() ? MappedFile::Open(path).status() : ReadFile(path).status();
  }
  const TemporaryFolder folder_;
};

INSTANTIATE_TEST_SUITE_P(MappedAndRead, OpenErrorTest, ::testing::Bool());

TEST_P(OpenErrorTest, NamesAnAbsentFile) {
  const absl::Status status = StatusOf(folder_.File("none"));
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr(folder_.File("none")));
  EXPECT_EQ(StatusOf("").code(), absl::StatusCode::kNotFound);
  folder_.Write("file", "");
  EXPECT_EQ(StatusOf(folder_.File("file/inside")).code(), absl::StatusCode::kNotFound);
}

TEST_P(OpenErrorTest, RefusesWhatIsNotARegularFile) {
  EXPECT_EQ(StatusOf(folder_.path()).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(StatusOf("/dev/null").code(), absl::StatusCode::kInvalidArgument);
}

TEST_P(OpenErrorTest, DoesNotWaitForTheOtherEndOfAPipe) {
  const std::string path = folder_.File("pipe");
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  EXPECT_EQ(StatusOf(path).code(), absl::StatusCode::kInvalidArgument);
}

TEST_P(OpenErrorTest, SaysWhoseModeDeniesPermissionAndWhatToDo) {
  ASSERT_EQ(chmod(folder_.path().c_str(), 0755), 0);
  const std::string path = folder_.Write("file", "x");
  ASSERT_EQ(chmod(path.c_str(), 0200), 0);
  const std::string denied = WithoutPrivileges([&] { return StatusOf(path).ToString(); });
  EXPECT_THAT(denied, StartsWith("PERMISSION_DENIED: cannot open " + path + ": Permission denied"));
  EXPECT_THAT(denied, HasSubstr("mode 0200"));
  EXPECT_THAT(denied, HasSubstr("belongs to "));
  EXPECT_THAT(denied, HasSubstr("this process runs as "));
  EXPECT_THAT(denied, HasSubstr("'chmod a+r " + path + "'"));
  ASSERT_EQ(chmod(path.c_str(), 0644), 0);
  EXPECT_EQ(WithoutPrivileges([&] { return StatusOf(path).ToString(); }), "OK");
}

TEST_P(OpenErrorTest, NamesTheFolderThatDeniesPermission) {
  ASSERT_EQ(chmod(folder_.path().c_str(), 0755), 0);
  const std::string folder =
      std::filesystem::path(folder_.File("private")).lexically_normal().string();
  ASSERT_TRUE(std::filesystem::create_directories(folder + "/models"));
  const std::string path = folder_.Write("private/models/file", "x");
  std::filesystem::create_symlink("private/models/file", folder_.File("link"));
  ASSERT_EQ(chmod(folder.c_str(), 0600), 0);
  for (const std::string& asked : {path, folder_.File("link")}) {
    const std::string denied = WithoutPrivileges([&] { return StatusOf(asked).ToString(); });
    EXPECT_THAT(denied, HasSubstr("cannot open " + asked));
    EXPECT_THAT(denied, HasSubstr(folder + " belongs to "));
    EXPECT_THAT(denied, HasSubstr("mode 0600"));
    EXPECT_THAT(denied, HasSubstr("'chmod a+rx " + folder + "'"));
  }
  ASSERT_EQ(chmod(folder.c_str(), 0755), 0);
}

TEST(ReadFileTest, ReadsAnyBytes) {
  const TemporaryFolder folder;
  const std::string contents("\0\xff\n\0x", 5);
  EXPECT_EQ(*ReadFile(folder.Write("file", contents)), contents);
  EXPECT_EQ(*ReadFile(folder.Write("empty", "")), "");
}

TEST(ReadFileTest, RefusesFilesAboveTheLimit) {
  const TemporaryFolder folder;
  const std::string path = folder.Write("file", "12345");
  EXPECT_TRUE(ReadFile(path, 5).ok());
  const absl::Status status = ReadFile(path, 4).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("5 bytes, expected at most 4"));
}

TEST(AtomicFileWriterTest, TheFileAppearsAtCommit) {
  const TemporaryFolder folder;
  const std::string path = folder.File("file");
  {
    const auto writer = AtomicFileWriter::Create(path);
    ASSERT_TRUE(writer.ok()) << writer.status();
    ASSERT_TRUE((*writer)->Append("one ").ok());
    ASSERT_TRUE((*writer)->Append("").ok());
    ASSERT_TRUE((*writer)->Append("two", 3).ok());
    EXPECT_FALSE(std::filesystem::exists(path));
    ASSERT_TRUE((*writer)->Commit().ok());
    EXPECT_EQ(*ReadFile(path), "one two");
  }
  EXPECT_THAT(folder.List(), ElementsAre("file"));
}

TEST(AtomicFileWriterTest, WithoutCommitNothingIsLeft) {
  const TemporaryFolder folder;
  {
    const auto writer = AtomicFileWriter::Create(folder.File("file"));
    ASSERT_TRUE(writer.ok());
    ASSERT_TRUE((*writer)->Append("text").ok());
  }
  EXPECT_THAT(folder.List(), IsEmpty());
}

TEST(AtomicFileWriterTest, ReplacesTheOldFileOnlyAtCommit) {
  const TemporaryFolder folder;
  const std::string path = folder.Write("file", "old");
  {
    const auto writer = AtomicFileWriter::Create(path);
    ASSERT_TRUE((*writer)->Append("new").ok());
    EXPECT_EQ(*ReadFile(path), "old");
  }
  EXPECT_EQ(*ReadFile(path), "old");
  ASSERT_TRUE(WriteFileAtomically(path, "new").ok());
  EXPECT_EQ(*ReadFile(path), "new");
}

TEST(AtomicFileWriterTest, TwoWritersOfOnePathDoNotMix) {
  const TemporaryFolder folder;
  const std::string path = folder.File("file");
  const auto first = AtomicFileWriter::Create(path);
  const auto second = AtomicFileWriter::Create(path);
  ASSERT_TRUE(first.ok() && second.ok());
  ASSERT_TRUE((*first)->Append("first").ok());
  ASSERT_TRUE((*second)->Append("second").ok());
  ASSERT_TRUE((*second)->Commit().ok());
  ASSERT_TRUE((*first)->Commit().ok());
  EXPECT_EQ(*ReadFile(path), "first");
  EXPECT_THAT(folder.List(), ElementsAre("file"));
}

TEST(AtomicFileWriterTest, ReportsAFullDiskAndLeavesTheOldFile) {
  const TemporaryFolder folder;
  const std::string path = folder.Write("file", "old");
  {
    const FileSizeLimit limit(4096);
    const std::string large(10'000, 'x');
    const absl::Status status = WriteFileAtomically(path, large);
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(path));
  }
  EXPECT_EQ(*ReadFile(path), "old");
  EXPECT_THAT(folder.List(), ElementsAre("file"));
}

TEST(AtomicFileWriterTest, ReportsFoldersThatAreNotThere) {
  const TemporaryFolder folder;
  EXPECT_EQ(AtomicFileWriter::Create(folder.File("none/file")).status().code(),
            absl::StatusCode::kNotFound);
}

TEST(AtomicFileWriterTest, DoesNotReplaceAFolder) {
  const TemporaryFolder folder;
  std::filesystem::create_directory(folder.File("target"));
  EXPECT_FALSE(WriteFileAtomically(folder.File("target"), "x").ok());
  EXPECT_THAT(folder.List(), ElementsAre("target"));
}

TEST(AtomicFileWriterTest, WritesRelativePaths) {
  const TemporaryFolder folder;
  const std::filesystem::path old_folder = std::filesystem::current_path();
  std::filesystem::current_path(folder.path());
  EXPECT_TRUE(WriteFileAtomically("file", "x").ok());
  std::filesystem::current_path(old_folder);
  EXPECT_THAT(folder.List(), ElementsAre("file"));
}

TEST(AtomicFileWriterTest, AFailedOrFinishedWriterRefusesMore) {
  const TemporaryFolder folder;
  const auto writer = AtomicFileWriter::Create(folder.File("file"));
  ASSERT_TRUE((*writer)->Commit().ok());
  EXPECT_FALSE((*writer)->Append("late").ok());
  EXPECT_FALSE((*writer)->Commit().ok());
  EXPECT_EQ(*ReadFile(folder.File("file")), "");
}

TEST(AtomicFileWriterTest, OverwritesWhatWasAppended) {
  const TemporaryFolder folder;
  const auto writer = AtomicFileWriter::Create(folder.File("file"));
  ASSERT_TRUE(writer.ok()) << writer.status();
  ASSERT_TRUE((*writer)->Append("0123456789").ok());
  ASSERT_TRUE((*writer)->Overwrite(2, "xyz").ok());
  ASSERT_TRUE((*writer)->Append("ab").ok());
  ASSERT_TRUE((*writer)->Commit().ok());
  EXPECT_EQ(*ReadFile(folder.File("file")), "01xyz56789ab");
}

}  // namespace
}  // namespace ultrasketch
