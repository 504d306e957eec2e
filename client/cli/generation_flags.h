// The options of generation that commands share.
#ifndef ULTRASKETCH_CLIENT_CLI_GENERATION_FLAGS_H_
#define ULTRASKETCH_CLIENT_CLI_GENERATION_FLAGS_H_

#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "client/client.h"

namespace ultrasketch::cli {

// Groups of the help text.
inline constexpr char kSpecialTokensGroup[] = "Special tokens";
inline constexpr char kSamplingGroup[] = "Sampling (defaults: the model's generation_config.json)";

class GenerationFlags {
 public:
  // Length and sampling. Values are kept in this object.
  void Declare(CLI::App& app);

  // Sets what was given.
  void Apply(client::GenerateRequest& request) const;

 private:
  client::GenerateRequest request_;
  std::vector<std::string> logit_bias_;
  bool ignore_eos_ = false;
  bool include_stop_ = false;
  bool no_skip_special_tokens_ = false;
};

}  // namespace ultrasketch::cli

#endif  // ULTRASKETCH_CLIENT_CLI_GENERATION_FLAGS_H_
