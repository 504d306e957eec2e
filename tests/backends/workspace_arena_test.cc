#include "engine/backends/workspace_arena.h"

#include <memory>
#include <vector>

#include "gtest/gtest.h"

namespace ultrasketch {
namespace {

// Blocks of a device that tells how many of its bytes are taken.
class Heap {
 public:
  class Block final : public DeviceBuffer {
   public:
    Block(Heap& heap, int64_t num_bytes)
        : heap_(heap), bytes_(static_cast<size_t>(num_bytes), uint8_t{0xff}) {
      heap_.num_bytes += num_bytes;
    }
    ~Block() override { heap_.num_bytes -= num_bytes(); }
    void* data() override { return bytes_.data(); }
    const void* data() const override { return bytes_.data(); }
    int64_t num_bytes() const override { return static_cast<int64_t>(bytes_.size()); }

   private:
    Heap& heap_;
    std::vector<uint8_t> bytes_;
  };

  int64_t limit = 1 << 20;  // of a block
  int64_t num_bytes = 0;
};

class TestArena final : public WorkspaceArena {
 public:
  explicit TestArena(Heap& heap) : heap_(heap) {}

 protected:
  absl::StatusOr<std::unique_ptr<DeviceBuffer>> AllocateBlock(int64_t num_bytes) override {
    if (num_bytes > heap_.limit) return absl::ResourceExhaustedError("too large");
    return std::make_unique<Heap::Block>(heap_, num_bytes);
  }

 private:
  Heap& heap_;
};

class WorkspaceArenaTest : public ::testing::Test {
 protected:
  std::unique_ptr<DeviceBuffer> MustAllocate(WorkspaceArena::Part& part, int64_t num_bytes) {
    auto buffer = part.Allocate(num_bytes);
    EXPECT_TRUE(buffer.ok()) << buffer.status();
    return *std::move(buffer);
  }

  Heap heap_;
  std::shared_ptr<WorkspaceArena> arena_ = std::make_shared<TestArena>(heap_);
};

TEST_F(WorkspaceArenaTest, BuffersOfAPartAreApartAndThoseOfPartsInTheSamePlace) {
  const auto first = arena_->Join();
  const auto a = MustAllocate(*first, 1000);
  const auto b = MustAllocate(*first, 500);
  const auto second = arena_->Join();
  const auto c = MustAllocate(*second, 100);
  first->BeginStep();
  auto* const bytes = static_cast<uint8_t*>(a->data());
  EXPECT_GE(static_cast<uint8_t*>(b->data()), bytes + 1000);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(b->data()) % 16, reinterpret_cast<uintptr_t>(bytes) % 16);
  EXPECT_EQ(a->num_bytes(), 1000);
  second->BeginStep();
  EXPECT_EQ(c->data(), bytes);
}

TEST_F(WorkspaceArenaTest, TheBlockIsAsLargeAsTheLargestNeed) {
  const auto small = arena_->Join();
  const auto a = MustAllocate(*small, 1000);
  small->BeginStep();
  EXPECT_EQ(heap_.num_bytes, 1000);
  auto large = arena_->Join();
  auto b = MustAllocate(*large, 5000);
  // The step in progress may still use the old block.
  EXPECT_EQ(heap_.num_bytes, 6000);
  static_cast<uint8_t*>(a->data())[999] = 1;
  small->BeginStep();
  EXPECT_EQ(heap_.num_bytes, 5000);
  static_cast<uint8_t*>(a->data())[999] = 1;
  b = nullptr;
  large = nullptr;
  small->BeginStep();
  EXPECT_EQ(heap_.num_bytes, 1000);
  static_cast<uint8_t*>(a->data())[999] = 1;
}

TEST_F(WorkspaceArenaTest, APartThatFindsNoMemoryLeavesTheOthersAsTheyWere) {
  const auto part = arena_->Join();
  const auto a = MustAllocate(*part, 1000);
  part->BeginStep();
  const void* const place = a->data();
  {
    const auto other = arena_->Join();
    EXPECT_EQ(other->Allocate((1 << 20) + 1).status().code(), absl::StatusCode::kResourceExhausted);
  }
  part->BeginStep();
  EXPECT_EQ(a->data(), place);
  EXPECT_EQ(heap_.num_bytes, 1000);
}

TEST_F(WorkspaceArenaTest, PartsOfOneArenaCountItOnce) {
  const auto first = arena_->Join();
  const auto second = arena_->Join();
  const auto a = MustAllocate(*first, 1024);
  const auto b = MustAllocate(*second, 1024);
  first->BeginStep();
  EXPECT_EQ(a->resident_bytes(), 1024);
  EXPECT_EQ(b->resident_bytes(), 1024);
  EXPECT_EQ(heap_.num_bytes, 1024);
}

}  // namespace
}  // namespace ultrasketch
