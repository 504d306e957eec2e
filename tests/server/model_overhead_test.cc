// The measurement of overheads, as the host arranges it.
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "server/model_host.h"
#include "tests/base/temporary_folder.h"
#include "tests/server/test_server.h"

namespace ultrasketch {
namespace {

using ::testing::HasSubstr;

constexpr SketchOverhead kMeasured = {.prefill = 0.5, .decode = 0.25};

// A host whose measurements take as long as they are held.
class ModelOverheadTest : public ::testing::Test {
 protected:
  ~ModelOverheadTest() override { Hold(false); }

  absl::StatusOr<SketchOverhead> Measure(const std::function<bool()>& is_cancelled) {
    {
      absl::MutexLock lock(&mutex_);
      ++num_begun_;
    }
    while (!is_cancelled()) {
      {
        absl::MutexLock lock(&mutex_);
        if (!is_held_) return kMeasured;
      }
      absl::SleepFor(absl::Milliseconds(1));
    }
    return absl::CancelledError("given up");
  }

  void Hold(bool is_held) {
    absl::MutexLock lock(&mutex_);
    is_held_ = is_held;
  }
  void AwaitBegun(int count) {
    absl::MutexLock lock(&mutex_);
    const auto has_begun = [&] { return num_begun_ >= count; };
    mutex_.Await(absl::Condition(&has_begun));
  }

  std::shared_ptr<HostedModel> NewModel(const std::string& name) {
    TestModel model;
    model.name = name;
    auto hosted = HostTestModel(model, metrics_);
    hosted->codec = "fold";
    return hosted;
  }

  struct Answer {
    absl::Notification is_done;
    absl::StatusOr<SketchOverhead> overhead;
  };
  std::unique_ptr<Answer> Ask(const std::string& name) {
    auto answer = std::make_unique<Answer>();
    host_.MeasureOverhead(name, [&answer = *answer](const absl::StatusOr<SketchOverhead>& result) {
      answer.overhead = result;
      answer.is_done.Notify();
    });
    return answer;
  }
  static absl::Status StatusOf(Answer& answer) {
    answer.is_done.WaitForNotification();
    return answer.overhead.status();
  }
  std::optional<SketchOverhead> Known(const std::string& name) const {
    const auto listing = host_.Get(name);
    return listing.ok() ? listing->model->overhead.Get() : std::nullopt;
  }

  Metrics metrics_;
  absl::Mutex mutex_;
  bool is_held_ ABSL_GUARDED_BY(mutex_) = false;
  int num_begun_ ABSL_GUARDED_BY(mutex_) = 0;
  TemporaryFolder folder_;
  ModelHost host_{
      {.loader = [this](const ModelSource& source) -> absl::StatusOr<std::shared_ptr<HostedModel>> {
         return NewModel(source.name);
       },
       .overhead_meter = [this](const HostedModel&,
                                const auto& is_cancelled) { return Measure(is_cancelled); },
       .measures_loaded_models = true,
       .repository = "",
       .drain_patience = absl::InfiniteDuration()}};
};

TEST_F(ModelOverheadTest, IsKnownOnceItHasBeenMeasured) {
  ASSERT_TRUE(host_.Add(NewModel("a")).ok());
  EXPECT_FALSE(Known("a").has_value());
  const auto answer = Ask("a");
  ASSERT_TRUE(StatusOf(*answer).ok());
  EXPECT_EQ(answer->overhead->prefill, kMeasured.prefill);
  EXPECT_EQ(Known("a")->decode, kMeasured.decode);
}

TEST_F(ModelOverheadTest, IsMeasuredAfterLoadingWithoutBeingWaitedFor) {
  Hold(true);
  ASSERT_TRUE(host_.AddSource({"a", folder_.path()}).ok());
  absl::Notification is_loaded;
  host_.Load("a", [&](const absl::Status&) { is_loaded.Notify(); });
  is_loaded.WaitForNotification();
  AwaitBegun(1);
  EXPECT_FALSE(Known("a").has_value());
  EXPECT_FALSE(host_.IsLoading());
  Hold(false);
  EXPECT_TRUE(StatusOf(*Ask("a")).ok());  // behind the first
  EXPECT_TRUE(Known("a").has_value());
}

TEST_F(ModelOverheadTest, LoadingInterruptsAMeasurementWhichBeginsAnew) {
  ASSERT_TRUE(host_.Add(NewModel("a")).ok());
  Hold(true);
  const auto answer = Ask("a");
  AwaitBegun(1);
  ASSERT_TRUE(host_.AddSource({"b", folder_.path()}).ok());
  absl::Notification is_loaded;
  host_.Load("b", [&](const absl::Status&) { is_loaded.Notify(); });
  is_loaded.WaitForNotification();
  EXPECT_FALSE(answer->is_done.HasBeenNotified());
  AwaitBegun(2);
  Hold(false);
  EXPECT_TRUE(StatusOf(*answer).ok());
}

TEST_F(ModelOverheadTest, UnloadingEndsIt) {
  ASSERT_TRUE(host_.Add(NewModel("a")).ok());
  ASSERT_TRUE(host_.Add(NewModel("b")).ok());
  Hold(true);
  const auto measured = Ask("a");
  AwaitBegun(1);
  const auto waiting = Ask("b");
  for (const char* name : {"a", "b"}) {
    absl::Notification is_unloaded;
    host_.Unload(name, [&](const absl::Status&) { is_unloaded.Notify(); });
    is_unloaded.WaitForNotification();
  }
  for (Answer* answer : {measured.get(), waiting.get()}) {
    EXPECT_EQ(StatusOf(*answer).code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(answer->overhead.status().message()), HasSubstr("unloaded"));
  }
}

TEST_F(ModelOverheadTest, DrainingEndsIt) {
  ASSERT_TRUE(host_.Add(NewModel("a")).ok());
  ASSERT_TRUE(host_.Add(NewModel("b")).ok());
  Hold(true);
  const auto measured = Ask("a");
  AwaitBegun(1);
  const auto waiting = Ask("b");
  host_.Drain(absl::InfiniteFuture());
  EXPECT_EQ(StatusOf(*measured).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(StatusOf(*waiting).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(StatusOf(*Ask("a")).code(), absl::StatusCode::kUnavailable);
}

TEST_F(ModelOverheadTest, ModelsThatAreNotReadyAreRefused) {
  EXPECT_EQ(StatusOf(*Ask("a")).code(), absl::StatusCode::kNotFound);
  ModelHost without_meter;
  absl::Status status;
  without_meter.MeasureOverhead(
      "a", [&](const absl::StatusOr<SketchOverhead>& overhead) { status = overhead.status(); });
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
}

}  // namespace
}  // namespace ultrasketch
