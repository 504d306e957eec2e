// The load generator's figures for people.
#ifndef ULTRASKETCH_CLIENT_CLI_LOAD_TABLE_H_
#define ULTRASKETCH_CLIENT_CLI_LOAD_TABLE_H_

#include <string>
#include <vector>

#include "engine/bench/load/load_summary.h"

namespace ultrasketch::cli {

// A block of lines for each run, and for several a table of one line a run.
std::string DescribeLoad(const std::vector<LoadSummary>& runs);

}  // namespace ultrasketch::cli

#endif  // ULTRASKETCH_CLIENT_CLI_LOAD_TABLE_H_
