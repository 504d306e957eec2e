// The teacher's own text, for a training that asks for it.
#ifndef ULTRASKETCH_CLIENT_FINETUNE_SELF_TEXT_H_
#define ULTRASKETCH_CLIENT_FINETUNE_SELF_TEXT_H_

#include <cstdint>
#include <stop_token>
#include <string>

#include "absl/status/statusor.h"

namespace ultrasketch::cli {

// Stands for a file among the texts to train on.
inline constexpr char kSelfText[] = "self";

struct SelfTextRequest {
  std::string teacher;          // folder
  std::string training_folder;  // where the file is put
  int64_t num_tokens = 20'000'000;
  int64_t window_tokens = 512;
  std::string device = "auto";
  int num_threads = 0;
  uint64_t seed = 0;
  bool reuse = false;  // the file that is there already, of the training that is resumed
};

// Runs `ultrasketch self-text`, which has the engine and lies beside this executable, and returns
// the file's path. FAILED_PRECONDITION in one of
// several processes; UNAVAILABLE where there is no such program; CANCELLED soon after `stop`;
// UNKNOWN when it failed, having said why on standard error.
absl::StatusOr<std::string> WriteSelfTextFile(const SelfTextRequest& request,
                                              const std::stop_token& stop);

}  // namespace ultrasketch::cli

#endif  // ULTRASKETCH_CLIENT_FINETUNE_SELF_TEXT_H_
