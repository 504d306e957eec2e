// Runs the `ultrasketch` command.
#ifndef ULTRASKETCH_TESTS_E2E_TOOL_H_
#define ULTRASKETCH_TESTS_E2E_TOOL_H_

#include <string>
#include <vector>

#include "nlohmann/json.hpp"

#include "tests/e2e/process.h"

namespace ultrasketch {

// `ultrasketch ARGUMENTS...` with `input` on standard input.
Completed RunTool(std::vector<std::string> arguments, const std::string& input = "");

// Standard output as one JSON object; fails the test, and gives an empty object, when it is not.
nlohmann::json ParseOutput(const Completed& run);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_TESTS_E2E_TOOL_H_
