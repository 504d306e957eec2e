// A tiny dense model and a compressed form of it, for the length of a test.
#ifndef ULTRASKETCH_TESTS_FINETUNE_TINY_PAIR_H_
#define ULTRASKETCH_TESTS_FINETUNE_TINY_PAIR_H_

#include <memory>
#include <string>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "engine/format/checkpoint.h"
#include "tests/base/temporary_folder.h"
#include "tests/finetune/tiny_student.h"

namespace ultrasketch {

// As WriteTinyPair.
class TinyPair {
 public:
  TinyPair(const nlohmann::json& config_changes, TinyCodec codec,
           const std::string& table = "int8") {
    WriteTinyPair(config_changes, codec, table, teacher(), student());
  }

  std::string teacher() const { return folder_.File("teacher"); }
  std::string student() const { return folder_.File("student"); }
  std::shared_ptr<const Checkpoint> OpenTeacher() const { return Open(teacher()); }
  std::shared_ptr<const Checkpoint> OpenStudent() const { return Open(student()); }

 private:
  static std::shared_ptr<const Checkpoint> Open(const std::string& path) {
    auto checkpoint = Checkpoint::Open(path);
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    return checkpoint.ok() ? *checkpoint : nullptr;
  }

  TemporaryFolder folder_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_TESTS_FINETUNE_TINY_PAIR_H_
