#include "engine/base/resident_memory.h"

#include <unistd.h>

#include <cstring>
#include <fstream>
#include <string>

#include "gtest/gtest.h"
#include <sys/mman.h>

#include "engine/base/file.h"
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

}  // namespace
}  // namespace ultrasketch
