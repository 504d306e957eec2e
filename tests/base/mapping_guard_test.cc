#include "engine/base/mapping_guard.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include <sys/mman.h>
#include <sys/wait.h>

#include "engine/base/file.h"
#include "tests/base/temporary_folder.h"

namespace ultrasketch {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kPages = 20;
const int64_t kPageBytes = sysconf(_SC_PAGESIZE);

// A sanitizer handles the signal itself: it reports it and exits.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr char kBusErrorMessage[] = "BUS on unknown address";
bool DiesOfABusError(int status) { return WIFEXITED(status) && WEXITSTATUS(status) != 0; }
#else
constexpr char kBusErrorMessage[] = "";
bool DiesOfABusError(int status) { return WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS; }
#endif

// Each of these ends a process of its own: handlers are for ever, and faults may be the end.
class MappingGuardTest : public ::testing::Test {
 protected:
  MappingGuardTest() {
    testing::FLAGS_gtest_death_test_style = "threadsafe";
    std::ofstream(path_) << std::string(static_cast<size_t>(kPages * kPageBytes), 'x');
  }

  std::unique_ptr<MappedFile> Map() {
    auto file = MappedFile::Open(path_);
    if (!file.ok()) _exit(10);
    return *std::move(file);
  }
  void CutTo(int64_t num_bytes) {
    std::filesystem::resize_file(path_, static_cast<uintmax_t>(num_bytes));
  }
  static uint8_t Read(const MappedFile& file, int64_t offset) {
    return static_cast<const volatile uint8_t*>(file.data())[offset];
  }
  // Ends the process: 0 when all is as it should be, else the line.
  static void Expect(bool condition, int line) {
    if (condition) return;
    std::fprintf(stderr, "line %d\n", line);
    _exit(1);
  }
  static bool IsSignalled() {
    pollfd event = {DamagedMappingsDescriptor(), POLLIN, 0};
    return poll(&event, 1, 0) == 1;
  }

  const TemporaryFolder folder_;
  const std::string path_ = folder_.path() + "/file";
};

#define EXPECT_HERE(condition) Expect(condition, __LINE__)

TEST_F(MappingGuardTest, WhatIsCutOffReadsAsZeros) {
  EXPECT_EXIT(
      {
        GuardMappings();
        const auto file = Map();
        const auto other = Map();
        EXPECT_HERE(Read(*file, 15 * kPageBytes) == 'x' && file->CheckIntact().ok());
        CutTo(5 * kPageBytes + 100);
        EXPECT_HERE(Read(*file, 5 * kPageBytes) == 'x');
        EXPECT_HERE(file->CheckIntact().ok());  // nothing was missed yet
        EXPECT_HERE(!IsSignalled());
        // From behind, and again.
        for (const int64_t page : {19, 12, 6, 7, 19}) {
          EXPECT_HERE(Read(*file, page * kPageBytes + 17) == 0);
        }
        EXPECT_HERE(Read(*file, 5 * kPageBytes) == 'x');
        EXPECT_HERE(IsSignalled());
        const absl::Status status = file->CheckIntact();
        EXPECT_HERE(status.code() == absl::StatusCode::kDataLoss);
        std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
        EXPECT_HERE(other->CheckIntact().ok());  // has missed nothing
        _exit(0);
      },
      ::testing::ExitedWithCode(0), "file: expected 81920 bytes, found 20580");
}

TEST_F(MappingGuardTest, MappingsComeAndGo) {
  EXPECT_EXIT(
      {
        GuardMappings();
        std::vector<std::unique_ptr<MappedFile>> files;
        for (int i = 0; i < 200; ++i) files.push_back(Map());
        for (size_t i = 0; i < files.size(); i += 2) files[i] = nullptr;
        for (int i = 0; i < 100; ++i) files.push_back(Map());
        CutTo(kPageBytes);
        for (const auto& file : files) {
          if (file == nullptr) continue;
          EXPECT_HERE(Read(*file, 3 * kPageBytes) == 0);
          EXPECT_HERE(!file->CheckIntact().ok());
        }
        // A new one of the same place is intact.
        files.clear();
        std::ofstream(path_) << std::string(static_cast<size_t>(kPages * kPageBytes), 'x');
        const auto file = Map();
        EXPECT_HERE(Read(*file, 3 * kPageBytes) == 'x' && file->CheckIntact().ok());
        _exit(0);
      },
      ::testing::ExitedWithCode(0), "");
}

TEST_F(MappingGuardTest, OtherMappingsFaultAsBefore) {
  EXPECT_EXIT(
      {
        GuardMappings();
        const auto file = Map();
        const int descriptor = open(path_.c_str(), O_RDONLY);
        void* const memory = mmap(nullptr, static_cast<size_t>(kPages * kPageBytes), PROT_READ,
                                  MAP_SHARED, descriptor, 0);
        CutTo(kPageBytes);
        EXPECT_HERE(static_cast<volatile uint8_t*>(memory)[3 * kPageBytes] == 0);
        _exit(0);
      },
      DiesOfABusError, kBusErrorMessage);
}

TEST_F(MappingGuardTest, WithoutTheGuardTheProcessEnds) {
  EXPECT_EXIT(
      {
        const auto file = Map();
        CutTo(kPageBytes);
        EXPECT_HERE(Read(*file, 3 * kPageBytes) == 0);
        _exit(0);
      },
      DiesOfABusError, kBusErrorMessage);
}

}  // namespace
}  // namespace ultrasketch
