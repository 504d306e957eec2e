#include "server/connection_listener.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "gtest/gtest.h"
#include <sys/resource.h>

#include "engine/base/check.h"
#include "server/metrics.h"
#include "tests/server/raw_grpc.h"

namespace ultrasketch {
namespace {

// Keeps what it is handed.
class KeepingAcceptor final : public ConnectionListener::Acceptor {
 public:
  struct Connections {
    // Waits until there are as many.
    void Await(size_t count) {
      absl::MutexLock lock(&mutex);
      const auto are_there = [this, count]() ABSL_SHARED_LOCKS_REQUIRED(mutex) {
        return descriptors.size() >= count;
      };
      mutex.Await(absl::Condition(&are_there));
    }
    void CloseOne() {
      absl::MutexLock lock(&mutex);
      close(descriptors.back());
      descriptors.pop_back();
    }
    ~Connections() {
      for (const int descriptor : descriptors) close(descriptor);
    }

    absl::Mutex mutex;
    std::vector<int> descriptors ABSL_GUARDED_BY(mutex);
  };

  explicit KeepingAcceptor(std::shared_ptr<Connections> connections)
      : connections_(std::move(connections)) {}

  void HandleNewConnection(NewConnectionParameters* parameters) override {
    absl::MutexLock lock(&connections_->mutex);
    connections_->descriptors.push_back(parameters->fd);
  }

 private:
  const std::shared_ptr<Connections> connections_;
};

struct Listener {
  explicit Listener(int max_connections)
      : listener(
            *ConnectionListener::Open({"127.0.0.1", 0}, max_connections, metrics.transport())) {
    listener->Start(std::make_unique<KeepingAcceptor>(connections));
  }
  int port() const { return listener->address().port; }

  Metrics metrics;
  std::shared_ptr<KeepingAcceptor::Connections> connections =
      std::make_shared<KeepingAcceptor::Connections>();
  std::unique_ptr<ConnectionListener> listener;
};

TEST(ConnectionListenerTest, ConnectionsOverTheLimitAreClosedUntilOthersEnd) {
  Listener server(2);
  std::vector<std::unique_ptr<RawConnection>> clients;
  for (int i = 0; i < 2; ++i) clients.push_back(std::make_unique<RawConnection>(server.port()));
  server.connections->Await(2);
  EXPECT_EQ(server.metrics.transport().connections.Value(), 2);
  RawConnection refused(server.port());
  EXPECT_EQ(refused.ReceiveAll(), "");  // the end, not silence
  EXPECT_EQ(server.metrics.transport().refused_for_limit.Value(), 1);

  server.connections->CloseOne();
  std::this_thread::sleep_for(std::chrono::milliseconds(20));  // counts are that old at most
  RawConnection served(server.port());
  server.connections->Await(2);
  EXPECT_EQ(server.metrics.transport().refused_for_limit.Value(), 1);
}

TEST(ConnectionListenerTest, ConnectionsThatEndAreCounted) {
  Listener server(10);
  RawConnection first(server.port());
  RawConnection second(server.port());
  server.connections->Await(2);
  server.connections->CloseOne();
  while (server.metrics.transport().connections.Value() != 1) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
}

TEST(ConnectionListenerTest, ListensNoMoreOnceStopped) {
  Listener server(10);
  server.listener->Stop();
  EXPECT_TRUE(CheckCanListen(server.listener->address()).ok());
}

// In a process of its own: it has no file descriptors left for a while.
void RunOutOfDescriptors() {
  Listener server(1000);
  RawConnection before(server.port());
  server.connections->Await(1);
  rlimit limit = {};
  US_CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
  limit.rlim_cur = 64;
  US_CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
  std::vector<int> fillers;
  for (int filler; (filler = open("/dev/null", O_RDONLY)) >= 0;) fillers.push_back(filler);
  US_CHECK(errno == EMFILE);
  // One for the client's side.
  close(fillers.back());
  fillers.pop_back();
  {
    RawConnection client(server.port());
    US_CHECK(client.ReceiveAll().empty());
  }
  US_CHECK(server.metrics.transport().refused_for_descriptors.Value() >= 1);
  for (const int filler : fillers) close(filler);
  RawConnection after(server.port());
  server.connections->Await(2);
  std::cerr << "survived\n";
  std::_Exit(0);
}

TEST(ConnectionListenerDeathTest, OutlivesRunningOutOfDescriptors) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(RunOutOfDescriptors(), ::testing::ExitedWithCode(0), "survived");
}

TEST(ConnectionListenerDeathTest, RaisesTheLimitOfOpenFiles) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto raise = [] {
    const rlimit limit = {64, 256};
    US_CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    std::_Exit(RaiseDescriptorLimit() == 256 ? 0 : 1);
  };
  EXPECT_EXIT(raise(), ::testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace ultrasketch
