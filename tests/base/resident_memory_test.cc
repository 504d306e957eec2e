#include "engine/base/resident_memory.h"

#include <unistd.h>

#include <cstring>
#include <fstream>
#include <string>

#include "gtest/gtest.h"
#include <sys/mman.h>

#include "engine/base/file.h"
#include "engine/base/large_vector.h"
#include "engine/base/mapped_pages.h"
#include "tests/base/temporary_folder.h"

namespace ultrasketch {
namespace {

TEST(ResidentMemoryTest, CountsPagesFromTheirFirstUse) {
  const int64_t page = sysconf(_SC_PAGESIZE);
  const int64_t size = 10000 * page;  // more than is asked for at once
  void* const memory = mmap(nullptr, static_cast<size_t>(size), PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  // Pages of two megabytes would come as one.
  madvise(memory, static_cast<size_t>(size), MADV_NOHUGEPAGE);
  auto* const bytes = static_cast<uint8_t*>(memory);
  EXPECT_EQ(ResidentBytes(bytes, size), 0);
  bytes[3 * page] = 1;
  bytes[9999 * page] = 1;
  EXPECT_EQ(ResidentBytes(bytes, size), 2 * page);
  // Of a page the part that was asked for.
  EXPECT_EQ(ResidentBytes(bytes + 3 * page + 10, 7), 7);
  EXPECT_EQ(ResidentBytes(bytes + 3 * page - 5, 15), 10);
  EXPECT_EQ(ResidentBytes(bytes + 4 * page - 5, 15), 5);
  EXPECT_EQ(ResidentBytes(bytes, 0), 0);
  munmap(memory, static_cast<size_t>(size));
}

TEST(ResidentMemoryTest, CountsWhatThisProcessHasReadOfAMappedFile) {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/file";
  constexpr int64_t kBytes = int64_t{8} << 20;
  std::ofstream(path) << std::string(kBytes, 'x');  // and so in the system's cache
  const auto file = MappedFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(ResidentBytes((*file)->data(), kBytes), 0);
  volatile uint8_t sum = 0;
  for (int64_t i = 0; i < kBytes / 2; i += 512) sum = sum + (*file)->data()[i];
  const int64_t half = ResidentBytes((*file)->data(), kBytes);
  EXPECT_GE(half, kBytes / 2);
  EXPECT_LT(half, kBytes);  // the system reads ahead a little
  for (int64_t i = 0; i < kBytes; i += 512) sum = sum + (*file)->data()[i];
  EXPECT_EQ(ResidentBytes((*file)->data(), kBytes), kBytes);
}

TEST(ResidentMemoryTest, ReleasesWholePagesOfMappedFiles) {
  const TemporaryFolder folder;
  const int64_t page = sysconf(_SC_PAGESIZE);
  const std::string path = folder.Write("file", std::string(static_cast<size_t>(8 * page), 'x'));
  const auto file = MappedFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  const uint8_t* const data = (*file)->data();
  volatile uint8_t sum = 0;
  for (int64_t i = 0; i < 8; ++i) sum = sum + data[i * page];
  ASSERT_EQ(ResidentBytes(data, 8 * page), 8 * page);
  ReleaseMappedPages(data + 1, 0);
  ReleaseMappedPages(data + 1, page - 1);
  ReleaseMappedPages(data + page, 8 * page);  // more than the file has: not part of it
  EXPECT_EQ(ResidentBytes(data, 8 * page), 8 * page);
  ReleaseMappedPages(data + page - 1, 3 * page);
  EXPECT_EQ(ResidentBytes(data, 8 * page), 6 * page);
  EXPECT_EQ(data[page], 'x');
}

TEST(ResidentMemoryTest, LeavesOtherMemoryAlone) {
  const std::string text(1 << 20, 'x');
  const std::string before = text;
  ReleaseMappedPages(text.data(), static_cast<int64_t>(text.size()));
  EXPECT_EQ(text, before);
}

TEST(LargeVectorTest, BeginsOnAHugePageWhenItHasOne) {
  const LargeVector<uint8_t> large(kHugePageBytes, 7);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(large.data()) % kHugePageBytes, 0);
  LargeVector<uint8_t> small(100, 7);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(small.data()) % 64, 0);
  small.resize(3 * kHugePageBytes, 8);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(small.data()) % kHugePageBytes, 0);
  EXPECT_EQ(small[99], 7);
  EXPECT_EQ(small[100], 8);
}

}  // namespace
}  // namespace ultrasketch
