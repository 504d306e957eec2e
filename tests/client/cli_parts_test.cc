#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <string>
#include <string_view>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "client/cli/input.h"
#include "client/cli/interrupt.h"
#include "client/cli/line_reader.h"
#include "client/cli/output.h"
#include "client/cli/progress.h"

namespace ultrasketch::cli {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

ProgressState Halfway() {
  return {.label = "compressing",
          .unit = "sites",
          .done = 10,
          .total = 20,
          .elapsed = absl::Seconds(5)};
}

TEST(ProgressTest, ShowsRateAndTimeLeft) {
  const std::string line = RenderProgress(Halfway(), 120);
  EXPECT_THAT(line, StartsWith("compressing  [===============               ]   50%"));
  EXPECT_THAT(line, EndsWith("10/20 sites  2.00 sites/s  0:05 left"));
}

TEST(ProgressTest, NeverExceedsTheTerminal) {
  for (int columns = -1; columns < 130; ++columns) {
    for (const double total : {0.0, 20.0, 1e18}) {
      ProgressState state = Halfway();
      state.total = total;
      EXPECT_LE(static_cast<int>(RenderProgress(state, columns).size()), std::max(columns, 0));
    }
  }
  EXPECT_EQ(RenderProgress(Halfway(), 6), " 50%");
  EXPECT_THAT(RenderProgress(Halfway(), 60), Not(HasSubstr("[")));
}

TEST(ProgressTest, KnowsNoShareWithoutATotal) {
  ProgressState state = Halfway();
  state.total = 0;
  const std::string line = RenderProgress(state, 100);
  EXPECT_EQ(line, "compressing  10 sites  2.00 sites/s");
}

TEST(ProgressTest, ShowsASharePerSecond) {
  ProgressState state = Halfway();
  state.unit = "%";
  state.done = 10;
  state.total = 100;
  EXPECT_EQ(RenderProgress(state, 45), "compressing   10%  2.00 %/s  0:45 left");
}

TEST(ProgressTest, StandsBeforeAnythingIsDone) {
  ProgressState state = Halfway();
  state.done = 0;
  state.elapsed = absl::ZeroDuration();
  EXPECT_THAT(RenderProgress(state, 100), HasSubstr("0%  0/20 sites"));
}

TEST(FormatTableTest, AlignsColumns) {
  EXPECT_EQ(FormatTable({{"name", "size"}, {"é", "1"}, {"long name", "1234"}}),
            "name       size\n"
            "é             1\n"
            "long name  1234\n");
}

TEST(FormatJsonTest, PutsAMemberOnALine) {
  const nlohmann::ordered_json object = {{"ids", {1, 2}},
                                         {"text", "a\xff\n"},
                                         {"sites", {{{"name", "x"}}, {{"name", "y"}}}},
                                         {"none", nlohmann::ordered_json::array()}};
  EXPECT_EQ(FormatJson(object),
            "{\n"
            "  \"ids\": [1,2],\n"
            "  \"text\": \"a\uFFFD\\n\",\n"
            "  \"sites\": [\n"
            "    {\"name\":\"x\"},\n"
            "    {\"name\":\"y\"}\n"
            "  ],\n"
            "  \"none\": []\n"
            "}\n");
}

TEST(WithThousandsTest, GroupsDigits) {
  EXPECT_EQ(WithThousands(0), "0");
  EXPECT_EQ(WithThousands(999), "999");
  EXPECT_EQ(WithThousands(1000), "1,000");
  EXPECT_EQ(WithThousands(-1234567), "-1,234,567");
  EXPECT_EQ(WithThousands(-123), "-123");
}

TEST(InterruptGuardTest, FirstSignalRequestsAStop) {
  InterruptGuard guard;
  EXPECT_FALSE(guard.stop().stop_requested());
  absl::Notification stopped;
  const std::stop_callback on_stop(guard.stop(), [&] { stopped.Notify(); });
  kill(getpid(), SIGTERM);
  stopped.WaitForNotification();
  EXPECT_TRUE(guard.stop().stop_requested());
}

TEST(InterruptGuardDeathTest, SecondSignalEndsTheProcess) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        InterruptGuard guard;
        absl::Notification stopped;
        const std::stop_callback on_stop(guard.stop(), [&] { stopped.Notify(); });
        kill(getpid(), SIGTERM);
        stopped.WaitForNotification();
        kill(getpid(), SIGTERM);
        pause();
      },
      ::testing::ExitedWithCode(128 + SIGTERM), "");
}

TEST(InterruptGuardTest, InterruptsCanBeTheCommandsOwnAffair) {
  InterruptGuard guard;
  absl::Mutex mutex;
  int num_interrupts = 0;
  guard.HandleInterrupts([&] {
    absl::MutexLock lock(&mutex);
    ++num_interrupts;
  });
  for (int i = 1; i <= 3; ++i) {
    kill(getpid(), SIGINT);
    const auto has_come = [&] { return num_interrupts == i; };
    absl::MutexLock lock(&mutex);
    mutex.Await(absl::Condition(&has_come));
  }
  EXPECT_FALSE(guard.stop().stop_requested());
  guard.HandleInterrupts(nullptr);
  absl::Notification stopped;
  const std::stop_callback on_stop(guard.stop(), [&] { stopped.Notify(); });
  kill(getpid(), SIGINT);
  stopped.WaitForNotification();
}

class LineReaderTest : public ::testing::Test {
 protected:
  LineReaderTest() { EXPECT_EQ(pipe(pipe_), 0); }
  ~LineReaderTest() override {
    close(pipe_[0]);
    CloseInput();
  }
  void Write(std::string_view text) {
    EXPECT_EQ(write(pipe_[1], text.data(), text.size()), static_cast<ssize_t>(text.size()));
  }
  void CloseInput() {
    if (pipe_[1] >= 0) close(pipe_[1]);
    pipe_[1] = -1;
  }
  // A line in brackets, or the event.
  std::string Next(LineReader& reader) {
    std::string line;
    const auto event = reader.Next(&line);
    EXPECT_TRUE(event.ok()) << event.status();
    if (!event.ok()) return "";
    return *event == LineReader::Event::kLine  ? "[" + line + "]"
           : *event == LineReader::Event::kEnd ? "end"
                                               : "woken";
  }
  int pipe_[2] = {-1, -1};
};

TEST_F(LineReaderTest, GivesLinesWithoutTheirEnds) {
  LineReader reader(pipe_[0]);
  Write("one\n\ntwo\r\nthree");
  CloseInput();
  EXPECT_EQ(Next(reader), "[one]");
  EXPECT_EQ(Next(reader), "[]");
  EXPECT_EQ(Next(reader), "[two]");
  EXPECT_EQ(Next(reader), "[three]");
  EXPECT_EQ(Next(reader), "end");
  EXPECT_EQ(Next(reader), "end");
}

TEST_F(LineReaderTest, WakingKeepsWhatWasRead) {
  LineReader reader(pipe_[0]);
  Write("be");
  reader.Wake();
  EXPECT_EQ(Next(reader), "woken");
  Write("gun\n");
  EXPECT_EQ(Next(reader), "[begun]");
}

// Its end for reading under a name, as the shell gives one to <(COMMAND).
class ReadInputTest : public LineReaderTest {
 protected:
  std::string Path() const { return absl::StrCat("/dev/fd/", pipe_[0]); }
};

TEST_F(ReadInputTest, ReadsPipesToTheirEnd) {
  Write("It was a ");
  std::thread writer([this] {
    Write("dark night");
    CloseInput();
  });
  const auto text = ReadInput(Path(), {});
  writer.join();
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(*text, "It was a dark night");
}

TEST_F(ReadInputTest, RefusesMoreThanItsLimit) {
  Write("12345");
  CloseInput();
  const absl::Status status = ReadInput(Path(), {}, 4).status();
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("more than 4 bytes"));
  EXPECT_TRUE(absl::IsResourceExhausted(ReadInput("/dev/zero", {}, 1 << 20).status()));
}

TEST_F(ReadInputTest, WaitsForAWriterUntilItIsStopped) {
  const std::string path = absl::StrCat(::testing::TempDir(), "/fifo.", getpid());
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  std::stop_source stop;
  std::thread stopper([&] {
    absl::SleepFor(absl::Milliseconds(100));
    stop.request_stop();
  });
  EXPECT_TRUE(absl::IsCancelled(ReadInput(path, stop.get_token()).status()));
  stopper.join();
  std::thread writer([&] { std::ofstream(path) << "late"; });
  const auto text = ReadInput(path, {});
  writer.join();
  unlink(path.c_str());
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(*text, "late");
}

TEST_F(ReadInputTest, ReadsFilesAndRefusesFolders) {
  const auto table = ReadInput(TEST_DATA_DIR "/loopback_targets.txt", {});
  ASSERT_TRUE(table.ok()) << table.status();
  EXPECT_THAT(*table, HasSubstr("localhost"));
  EXPECT_TRUE(absl::IsNotFound(ReadInput("/nonexistent/text", {}).status()));
  const absl::Status folder = ReadInput(TEST_DATA_DIR, {}).status();
  EXPECT_TRUE(absl::IsInvalidArgument(folder));
  EXPECT_THAT(std::string(folder.message()),
              HasSubstr("expected a file or a pipe, found a folder"));
}

}  // namespace
}  // namespace ultrasketch::cli
