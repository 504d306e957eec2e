#include "tests/e2e/tool.h"

#include <gtest/gtest.h>

namespace ultrasketch {

Completed RunTool(std::vector<std::string> arguments, const std::string& input) {
  arguments.insert(arguments.begin(), ULTRASKETCH_BINARY);
  return RunProgram(std::move(arguments), input);
}

nlohmann::json ParseOutput(const Completed& run) {
  nlohmann::json object = nlohmann::json::parse(run.out, nullptr, /*allow_exceptions=*/false);
  EXPECT_TRUE(object.is_object()) << "standard output: " << run.out << "\nerror: " << run.err;
  return object.is_object() ? object : nlohmann::json::object();
}

}  // namespace ultrasketch
