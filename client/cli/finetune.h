// `ultrasketch finetune`: the trainer, which carries LibTorch, is an executable of its own.
#ifndef ULTRASKETCH_CLIENT_CLI_FINETUNE_H_
#define ULTRASKETCH_CLIENT_CLI_FINETUNE_H_

#include <string>

#include "absl/status/status.h"
#include "absl/types/span.h"

namespace ultrasketch::cli {

inline constexpr char kFinetuneName[] = "finetune";
inline constexpr char kFinetuneSummary[] =
    "Train a compressed model to predict what the dense one does";

// Replaces this process by `ultrasketch-finetune`, which is in the folder of this executable, with
// these arguments. Returns only when that fails: UNAVAILABLE, saying how to build it, when it is
// not there.
absl::Status BecomeTrainer(absl::Span<const char* const> arguments);

}  // namespace ultrasketch::cli

#endif  // ULTRASKETCH_CLIENT_CLI_FINETUNE_H_
