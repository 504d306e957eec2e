// What MeasureModel, and with it `ultrasketch inspect`, says of a folder that no model can be
// loaded from.
#include "engine/compress/accounting.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/base/temporary_folder.h"
#include "tests/models/tiny_model.h"

namespace ultrasketch {
namespace {

using ::testing::HasSubstr;

absl::Status MeasureFolder(const TinyModel& model) {
  TemporaryFolder folder;
  model.Write(folder.path());
  const auto checkpoint = Checkpoint::Open(folder.path());
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  return MeasureModel(**checkpoint).status();
}

TEST(MeasureModelTest, NamesAnyTensorThatIsMissingOrOfAnotherShape) {
  nlohmann::json config = TinyConfig();
  config["attention_bias"] = true;
  config["mlp_bias"] = true;
  config["tie_word_embeddings"] = false;
  const TinyModel whole = MakeTinyModel(config, {DType::kBF16});
  ASSERT_TRUE(MeasureFolder(whole).ok());
  for (const auto& [name, tensor] : whole.tensors) {
    TinyModel changed = whole;
    changed.tensors.erase(name);
    const absl::Status missing = MeasureFolder(changed);
    EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound) << name;
    EXPECT_THAT(std::string(missing.message()), HasSubstr("\"" + name + "\""));

    changed = whole;
    TinyTensor& longer = changed.tensor(name);
    longer.shape.back() += 1;
    longer.values.assign(
        static_cast<size_t>(tensor.shape.size() == 1 ? longer.shape[0]
                                                     : longer.shape[0] * longer.shape[1]),
        1.0f);
    const absl::Status other = MeasureFolder(changed);
    EXPECT_EQ(other.code(), absl::StatusCode::kDataLoss) << name;
    EXPECT_THAT(std::string(other.message()), HasSubstr("\"" + name + "\""));
  }
}

}  // namespace
}  // namespace ultrasketch
