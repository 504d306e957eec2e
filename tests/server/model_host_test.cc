#include "server/model_host.h"

#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/notification.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/strings.h"
#include "server/model_repository.h"
#include "server/repository_watcher.h"
#include "tests/base/temporary_folder.h"
#include "tests/server/test_server.h"
#include "tests/serving/engine_loop/testing.h"

namespace ultrasketch {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// A repository of folders whose config.json says what the loader does: "ok", or an error's message.
class ModelHostTest : public ::testing::Test {
 protected:
  absl::Status Add(const std::string& name) {
    TestModel model;
    model.name = name;
    model.model.before_forward = gate_.Hook();
    return host_.Add(HostTestModel(model, metrics_));
  }

  void Write(const std::string& name, const std::string& what) {
    const std::filesystem::path folder = std::filesystem::path(repository_.path()) / name;
    std::filesystem::create_directories(folder);
    std::ofstream(folder / "config.json") << what;
  }

  absl::StatusOr<std::shared_ptr<HostedModel>> LoadFake(const ModelSource& source) {
    {
      absl::MutexLock lock(&mutex_);
      ++num_loads_[source.name];
      const auto may_load = [this] { return loading_allowed_; };
      mutex_.Await(absl::Condition(&may_load));
    }
    std::ifstream file(source.folder + "/config.json");
    const std::string what((std::istreambuf_iterator<char>(file)), {});
    if (what != "ok") return absl::DataLossError(what);
    TestModel model;
    model.name = source.name;
    model.model.before_forward = gate_.Hook();
    return HostTestModel(model, metrics_);
  }

  void AllowLoading(bool is_allowed) {
    absl::MutexLock lock(&mutex_);
    loading_allowed_ = is_allowed;
  }

  int num_loads(const std::string& name) {
    absl::MutexLock lock(&mutex_);
    return num_loads_[name];
  }

  absl::Status LoadAndWait(const std::string& name) {
    return Wait([&](ModelHost::Done done) { host_.Load(name, std::move(done)); });
  }
  absl::Status UnloadAndWait(const std::string& name) {
    return Wait([&](ModelHost::Done done) { host_.Unload(name, std::move(done)); });
  }
  static absl::Status Wait(const std::function<void(ModelHost::Done)>& start) {
    absl::Status result;
    absl::Notification is_done;
    start([&](const absl::Status& status) {
      result = status;
      is_done.Notify();
    });
    is_done.WaitForNotification();
    return result;
  }
  // Waits until nothing is queued or being loaded.
  void AwaitLoads() const {
    while (host_.IsLoading()) absl::SleepFor(absl::Milliseconds(1));
  }
  // "a READY, b FAILED".
  std::string States() const {
    std::string text;
    for (const ModelHost::Listing& listing : host_.List()) {
      text += (text.empty() ? "" : ", ") + listing.name + " " +
              std::string(ModelStateName(listing.state));
    }
    return text;
  }

  Metrics metrics_;
  Gate gate_;
  TemporaryFolder repository_;
  absl::Mutex mutex_;
  bool loading_allowed_ = true;
  std::map<std::string, int> num_loads_;
  ModelHost host_{{.loader = [this](const ModelSource& source) { return LoadFake(source); },
                   .repository = repository_.path(),
                   .drain_patience = absl::InfiniteDuration()}};
};

TEST_F(ModelHostTest, TheOnlyModelNeedsNoName) {
  ASSERT_TRUE(Add("a").ok());
  ASSERT_TRUE(host_.FindReady("").ok());
  EXPECT_EQ((*host_.FindReady(""))->name, "a");
  EXPECT_EQ((*host_.FindReady("a"))->name, "a");
}

TEST_F(ModelHostTest, OneOfSeveralNeedsAName) {
  ASSERT_TRUE(Add("a").ok());
  ASSERT_TRUE(Add("b").ok());
  const absl::Status status = host_.FindReady("").status();
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(S(status.message()), AllOf(HasSubstr("model: "), HasSubstr("a, b")));
  EXPECT_EQ((*host_.FindReady("b"))->name, "b");
}

TEST_F(ModelHostTest, UnknownNamesListTheKnownOnes) {
  EXPECT_TRUE(absl::IsNotFound(host_.FindReady("").status()));
  for (int i = 0; i < 40; ++i) ASSERT_TRUE(Add("model-" + std::to_string(100 + i)).ok());
  const absl::Status status = host_.FindReady(std::string(1'000'000, 'x')).status();
  EXPECT_TRUE(absl::IsNotFound(status));
  EXPECT_LT(status.message().size(), 1000u);
  EXPECT_THAT(S(status.message()), AllOf(HasSubstr("model-100"), HasSubstr("24 more")));
}

TEST_F(ModelHostTest, NamesArePlain) {
  for (const std::string& name :
       {std::string(), std::string("a b"), std::string("a\nb"), std::string("\xC3\xA4"),
        std::string(129, 'x'), std::string("ultrasketch.v1.ModelService")}) {
    EXPECT_TRUE(absl::IsInvalidArgument(Add(name))) << name;
    EXPECT_TRUE(absl::IsInvalidArgument(host_.AddSource({name, "folder"}))) << name;
  }
}

TEST_F(ModelHostTest, ANameStandsForOneFolder) {
  ASSERT_TRUE(host_.AddSource({"a", "first"}).ok());
  const absl::Status status = host_.AddSource({"a", "second"});
  EXPECT_TRUE(absl::IsAlreadyExists(status));
  EXPECT_THAT(S(status.message()), AllOf(HasSubstr("first"), HasSubstr("second")));
}

TEST_F(ModelHostTest, DrainRefusesAndKeepsListing) {
  Write("a", "ok");
  ASSERT_TRUE(LoadAndWait("a").ok());
  host_.Drain(absl::InfiniteFuture());
  EXPECT_TRUE(absl::IsUnavailable(host_.FindReady("a").status()));
  EXPECT_EQ(States(), "a DRAINING");
  EXPECT_TRUE(absl::IsUnavailable(LoadAndWait("a"))) << LoadAndWait("a");
}

TEST_F(ModelHostTest, LongestTokenIsFound) {
  ASSERT_TRUE(Add("a").ok());
  EXPECT_EQ((*host_.FindReady("a"))->max_token_bytes, 7);  // "<|end|>"
}

TEST_F(ModelHostTest, LoadsAFolderOfTheRepositoryWhileOthersServe) {
  ASSERT_TRUE(Add("a").ok());
  Write("b", "ok");
  AllowLoading(false);
  absl::Notification is_loaded;
  host_.Load("b", [&](const absl::Status& status) {
    EXPECT_TRUE(status.ok()) << status;
    is_loaded.Notify();
  });
  EXPECT_EQ(States(), "a READY, b LOADING");
  EXPECT_TRUE(host_.FindReady("a").ok());
  const absl::Status loading = host_.FindReady("b").status();
  EXPECT_TRUE(absl::IsUnavailable(loading));
  EXPECT_THAT(S(loading.message()), HasSubstr("is being loaded"));
  AllowLoading(true);
  is_loaded.WaitForNotification();
  EXPECT_EQ(States(), "a READY, b READY");
}

TEST_F(ModelHostTest, CallsForANameThatWaitsShareOneLoading) {
  Write("a", "ok");
  AllowLoading(false);
  absl::BlockingCounter all(3);
  for (int i = 0; i < 3; ++i) {
    host_.Load("a", [&](const absl::Status& status) {
      EXPECT_TRUE(status.ok()) << status;
      all.DecrementCount();
    });
  }
  AllowLoading(true);
  all.Wait();
  EXPECT_EQ(num_loads("a"), 1);
}

TEST_F(ModelHostTest, ABrokenFolderIsFailedWithItsReasonAndCanBeMended) {
  Write("a", "tensor 7 is missing");
  Write("b", "ok");
  const absl::Status status = LoadAndWait("a");
  EXPECT_TRUE(absl::IsDataLoss(status));
  ASSERT_TRUE(LoadAndWait("b").ok());
  EXPECT_EQ(States(), "a FAILED, b READY");
  EXPECT_THAT(S(host_.Get("a")->error.message()), HasSubstr("tensor 7 is missing"));
  EXPECT_THAT(S(host_.FindReady("a").status().message()), HasSubstr("tensor 7 is missing"));
  EXPECT_TRUE(host_.FindReady("b").ok());

  Write("a", "ok");
  ASSERT_TRUE(LoadAndWait("a").ok());
  EXPECT_EQ(States(), "a READY, b READY");
  EXPECT_TRUE(host_.Get("a")->error.ok());
}

TEST_F(ModelHostTest, NothingIsKeptOfNamesThatAreNoFolders) {
  for (const char* name : {"missing", "..", ".hidden", "a/b", "/etc"}) {
    EXPECT_FALSE(LoadAndWait(name).ok()) << name;
  }
  EXPECT_THAT(host_.List(), IsEmpty());
}

TEST_F(ModelHostTest, AReplacedModelFinishesWhatItHasBegun) {
  Write("a", "ok");
  ASSERT_TRUE(LoadAndWait("a").ok());
  const auto old = *host_.FindReady("a");
  gate_.Close();
  auto sink = std::make_shared<RecordingSink>();
  GenerationRequest request;
  request.prompt_ids = {1, 2, 3};
  request.max_tokens = 4;
  ASSERT_TRUE(old->engine_loop->Submit(request, sink).ok());
  gate_.WaitForStep();

  ASSERT_TRUE(LoadAndWait("a").ok());
  const auto current = *host_.FindReady("a");
  EXPECT_NE(old, current);
  gate_.Open();
  EXPECT_EQ(sink->Wait().result->reason, FinishReason::kLength);
}

TEST_F(ModelHostTest, AFailedReplacementLeavesTheOldModelServing) {
  Write("a", "ok");
  ASSERT_TRUE(LoadAndWait("a").ok());
  const auto old = *host_.FindReady("a");
  Write("a", "half a file");
  EXPECT_TRUE(absl::IsDataLoss(LoadAndWait("a")));
  EXPECT_EQ(States(), "a READY");
  EXPECT_EQ(*host_.FindReady("a"), old);
  EXPECT_THAT(S(host_.Get("a")->error.message()), HasSubstr("half a file"));
}

TEST_F(ModelHostTest, UnloadFreesTheModelAndForgetsTheName) {
  Write("a", "ok");
  ASSERT_TRUE(LoadAndWait("a").ok());
  // As a client that has yet to read its answer holds it.
  const auto held = *host_.FindReady("a");
  EXPECT_GT(held->engine_loop->memory_usage().total(), 0);
  ASSERT_TRUE(UnloadAndWait("a").ok());
  EXPECT_THAT(host_.List(), IsEmpty());
  EXPECT_EQ(held->engine_loop->memory_usage().total(), 0);
  EXPECT_TRUE(absl::IsNotFound(host_.FindReady("a").status()));
  EXPECT_TRUE(absl::IsNotFound(UnloadAndWait("a")));
  ASSERT_TRUE(LoadAndWait("a").ok());
  EXPECT_EQ(States(), "a READY");
}

TEST_F(ModelHostTest, UnloadLetsRequestsFinish) {
  Write("a", "ok");
  ASSERT_TRUE(LoadAndWait("a").ok());
  gate_.Close();
  auto sink = std::make_shared<RecordingSink>();
  GenerationRequest request;
  request.prompt_ids = {1, 2, 3};
  request.max_tokens = 4;
  ASSERT_TRUE((*host_.FindReady("a"))->engine_loop->Submit(request, sink).ok());
  gate_.WaitForStep();
  absl::Notification is_unloaded;
  host_.Unload("a", [&](const absl::Status&) { is_unloaded.Notify(); });
  EXPECT_EQ(States(), "a DRAINING");
  EXPECT_TRUE(absl::IsUnavailable(host_.FindReady("a").status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(UnloadAndWait("a")));
  EXPECT_FALSE(is_unloaded.HasBeenNotified());
  gate_.Open();
  is_unloaded.WaitForNotification();
  EXPECT_EQ(sink->Wait().result->reason, FinishReason::kLength);
  EXPECT_THAT(host_.List(), IsEmpty());
}

TEST_F(ModelHostTest, LoadingThatDrainOvertakesEndsWithAnAnswer) {
  Write("a", "ok");
  Write("b", "ok");
  AllowLoading(false);
  std::vector<absl::Status> results(2);
  absl::BlockingCounter all(2);
  int index = 0;
  for (const char* name : {"a", "b"}) {
    host_.Load(name, [&results, &all, i = index++](const absl::Status& status) {
      results[static_cast<size_t>(i)] = status;
      all.DecrementCount();
    });
  }
  host_.Drain(absl::InfiniteFuture());
  AllowLoading(true);
  all.Wait();
  EXPECT_TRUE(absl::IsUnavailable(results[0])) << results[0];
  EXPECT_TRUE(absl::IsUnavailable(results[1])) << results[1];
  EXPECT_FALSE(host_.FindReady("a").ok());
}

class RecordingObserver : public ModelStateObserver {
 public:
  void OnModelState(const std::string& name, ModelState state, bool) override {
    events.push_back(name + " " + std::string(ModelStateName(state)));
  }
  void OnModelGone(const std::string& name) override { events.push_back(name + " gone"); }
  std::vector<std::string> events;
};

TEST_F(ModelHostTest, ObserversHearOfEveryState) {
  RecordingObserver observer;
  Write("a", "ok");
  Write("b", "broken");
  host_.Observe(&observer);
  ASSERT_TRUE(LoadAndWait("a").ok());
  ASSERT_FALSE(LoadAndWait("b").ok());
  ASSERT_TRUE(UnloadAndWait("a").ok());
  host_.Observe(nullptr);
  EXPECT_THAT(observer.events,
              ElementsAre("a LOADING", "a READY", "b LOADING", "b FAILED", "a DRAINING", "a gone"));
}

TEST_F(ModelHostTest, TheWatcherLoadsWhatHasSettledAndUnloadsWhatIsGone) {
  RepositoryWatcher watcher(repository_.path(), host_);
  Write("a", "ok");
  watcher.Look();
  EXPECT_EQ(States(), "");  // it may still be being copied
  watcher.Look();
  AwaitLoads();
  EXPECT_EQ(States(), "a READY");
  watcher.Look();
  AwaitLoads();
  EXPECT_EQ(num_loads("a"), 1);

  std::ofstream(std::filesystem::path(repository_.path()) / "a" / "model.safetensors") << "new";
  watcher.Look();
  watcher.Look();
  AwaitLoads();
  EXPECT_EQ(num_loads("a"), 2);

  std::filesystem::remove_all(std::filesystem::path(repository_.path()) / "a");
  watcher.Look();
  EXPECT_EQ(States(), "a READY");  // a new version may be on its way
  watcher.Look();
  while (!host_.List().empty()) absl::SleepFor(absl::Milliseconds(1));
}

TEST_F(ModelHostTest, FoldersThatMayBeModelsAreFoundWhateverIsWrongWithThem) {
  const std::filesystem::path root = repository_.path();
  const auto folder = [&](const std::string& name) {
    std::filesystem::create_directories(root / name);
    return root / name;
  };
  Write("a", "ok");
  std::filesystem::create_symlink("../blobs/gone", folder("broken_config") / "config.json");
  std::filesystem::create_directories(folder("config_is_a_folder") / "config.json");
  std::filesystem::create_symlink("../snapshots/gone", root / "gone");
  std::filesystem::create_symlink("a", root / "link");
  std::ofstream(folder("weights_alone") / "model.safetensors") << "weights";
  // No models.
  folder("empty");
  folder("lost+found");
  std::ofstream(folder("notes") / "README.md") << "text";
  std::ofstream(folder(".git") / "config.json") << "ok";
  std::ofstream(root / "file") << "text";

  const auto found = FindModels(repository_.path());
  ASSERT_TRUE(found.ok()) << found.status();
  std::vector<std::string> names;
  for (const ModelSource& source : *found) names.push_back(source.name);
  EXPECT_THAT(names, ElementsAre("a", "broken_config", "config_is_a_folder", "gone", "link",
                                 "weights_alone"));
  for (const std::string& name : names) {
    EXPECT_TRUE(FindModel(repository_.path(), name).ok()) << name;
  }
  for (const char* name : {"empty", "lost+found", "notes", "file", "none"}) {
    EXPECT_TRUE(absl::IsNotFound(FindModel(repository_.path(), name).status())) << name;
  }
}

TEST_F(ModelHostTest, TheWatcherTellsOfNewFoldersThatCannotBeReadAndLeavesReadModelsAlone) {
  const std::filesystem::path root = repository_.path();
  RepositoryWatcher watcher(repository_.path(), host_);
  Write("a", "ok");
  std::filesystem::create_symlink("gone", root / "b");
  for (int i = 0; i < 4; ++i) watcher.Look();
  AwaitLoads();
  EXPECT_EQ(States(), "a READY, b FAILED");
  EXPECT_EQ(num_loads("b"), 1);
  // As a folder that is not to be read any more: what it was cannot be seen.
  std::filesystem::rename(root / "a", root / "elsewhere");
  std::filesystem::create_symlink("gone", root / "a");
  for (int i = 0; i < 4; ++i) watcher.Look();
  AwaitLoads();
  EXPECT_THAT(States(), HasSubstr("a READY"));
  EXPECT_EQ(num_loads("a"), 1);
}

TEST_F(ModelHostTest, TheWatcherLeavesNamesAloneThatAreServedFromElsewhere) {
  TemporaryFolder elsewhere;
  elsewhere.Write("config.json", "ok");
  ASSERT_TRUE(host_.AddSource({"a", elsewhere.path()}).ok());
  ASSERT_TRUE(LoadAndWait("a").ok());
  RepositoryWatcher watcher(repository_.path(), host_);
  Write("a", "ok");
  for (int i = 0; i < 3; ++i) watcher.Look();
  std::filesystem::remove_all(std::filesystem::path(repository_.path()) / "a");
  for (int i = 0; i < 3; ++i) watcher.Look();
  AwaitLoads();
  EXPECT_EQ(States(), "a READY");
  EXPECT_EQ(num_loads("a"), 1);
}

TEST_F(ModelHostTest, WhatCouldNotBeLoadedDoesNotMakeANameNecessary) {
  Write("a", "ok");
  Write("b", "broken");
  ASSERT_TRUE(LoadAndWait("a").ok());
  ASSERT_FALSE(LoadAndWait("b").ok());
  ASSERT_TRUE(host_.FindReady("").ok());
  EXPECT_EQ((*host_.FindReady(""))->name, "a");
}

}  // namespace
}  // namespace ultrasketch
