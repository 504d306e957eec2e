#include "server/model_host.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/strings.h"
#include "tests/server/test_server.h"

namespace ultrasketch {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class ModelHostTest : public ::testing::Test {
 protected:
  absl::Status Add(const std::string& name) {
    TestModel model;
    model.name = name;
    return host_.Add(HostTestModel(model, metrics_));
  }

  Metrics metrics_;
  ModelHost host_;
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

TEST_F(ModelHostTest, NamesAreUniqueAndPlain) {
  ASSERT_TRUE(Add("a").ok());
  EXPECT_TRUE(absl::IsAlreadyExists(Add("a")));
  for (const std::string& name : {std::string(), std::string("a b"), std::string("a\nb"),
                                  std::string("\xC3\xA4"), std::string(129, 'x')}) {
    EXPECT_TRUE(absl::IsInvalidArgument(Add(name))) << name;
  }
}

TEST_F(ModelHostTest, DrainRefusesAndKeepsListing) {
  ASSERT_TRUE(Add("a").ok());
  host_.Drain(absl::InfiniteFuture());
  EXPECT_TRUE(absl::IsUnavailable(host_.FindReady("a").status()));
  ASSERT_EQ(host_.List().size(), 1u);
  EXPECT_EQ(host_.List()[0].state, ModelState::kDraining);
}

TEST_F(ModelHostTest, LongestTokenIsFound) {
  ASSERT_TRUE(Add("a").ok());
  EXPECT_EQ((*host_.FindReady("a"))->max_token_bytes, 7);  // "<|end|>"
}

}  // namespace
}  // namespace ultrasketch
