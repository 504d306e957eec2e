// Metrics of real models, their description, and what happens to files under a server.
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/base/file.h"
#include "tests/e2e/server.h"
#include "tests/e2e/tool.h"

namespace ultrasketch {
namespace {

using ::testing::HasSubstr;

namespace fs = std::filesystem;

const std::string kModels = absl::StrCat(PROJECT_FOLDER, "/deploy/models");
const std::string kSketch = absl::StrCat("sketch=", kModels, "/classics-20m-sketch");
const std::string kDense = absl::StrCat("dense=", kModels, "/classics-6m");

absl::Status Generate(client::Client& client, const std::string& model) {
  client::GenerateRequest request;
  request.model = model;
  request.prompt = "It was a dark night, and";
  request.max_tokens = 20;
  request.ignore_eos = true;
  return client.Generate(request).status();
}

// Bytes that the kernel counts page by page; /proc/PID/stat may lag behind.
double ResidentBytes(pid_t process) {
  std::ifstream file(absl::StrCat("/proc/", process, "/smaps_rollup"));
  for (std::string word; file >> word;) {
    double kilobytes = 0;
    if (word == "Rss:" && file >> kilobytes) return kilobytes * 1024;
  }
  return 0;
}

TEST(MetricsTest, KindsOfMemoryAddUpToTheProcess) {
  TestServer server({kSketch, kDense}, {"--measure-overhead", "off"});
  const auto client = server.Connect();
  ASSERT_TRUE(Generate(*client, "sketch").ok());
  ASSERT_TRUE(Generate(*client, "dense").ok());
  // Of one page: each of the first scrapes takes a thread, and that some memory.
  const std::string page = server.Metrics();
  const double resident = ResidentBytes(server.process().pid());
  const auto bytes = [&](const std::string& model, const std::string& kind) {
    return TestServer::MetricOf(page, "ultrasketch_memory_bytes",
                                {absl::StrCat("model=\"", model, "\""), "device=\"cpu\"",
                                 absl::StrCat("\"", kind, "\"")})
        .value_or(-1);
  };
  double sum = bytes("", "workspace") + bytes("", "other");
  EXPECT_GT(bytes("", "workspace"), 0);
  EXPECT_GT(bytes("", "other"), 1 << 20);
  for (const char* model : {"sketch", "dense"}) {
    for (const char* kind : {"weights", "embedding", "kv_cache"}) {
      EXPECT_GT(bytes(model, kind), 1 << 15) << model << " " << kind;
      sum += bytes(model, kind);
    }
  }
  EXPECT_NEAR(sum, resident, 0.05 * resident);
}

TEST(MetricsTest, StagesAddUpToSteps) {
  TestServer server({kSketch, kDense}, {"--measure-overhead", "off"});
  const auto client = server.Connect();
  for (const char* model : {"sketch", "dense"}) {
    ASSERT_TRUE(Generate(*client, model).ok());
    const std::string label = absl::StrCat("model=\"", model, "\"");
    for (const char* phase : {"phase=\"prefill\"", "phase=\"decode\""}) {
      double sum = 0;
      std::map<std::string, double> stages;
      for (const char* stage : {"sketch", "gemm", "attention", "head", "sampling", "other"}) {
        const std::vector<std::string> labels = {label, phase, absl::StrCat("\"", stage, "\"")};
        stages[stage] = server.Metric("ultrasketch_step_stage_seconds_sum", labels).value_or(-1);
        EXPECT_GE(stages[stage], 0) << stage;
        sum += stages[stage];
        EXPECT_EQ(server.Metric("ultrasketch_step_stage_seconds_count", labels),
                  server.Metric("ultrasketch_step_duration_seconds_count", {label, phase}));
      }
      const double steps =
          server.Metric("ultrasketch_step_duration_seconds_sum", {label, phase}).value_or(-1);
      EXPECT_NEAR(sum, steps, 0.01 * steps) << model << " " << phase;
      EXPECT_EQ(stages["sketch"] > 0, std::string(model) == "sketch");
      EXPECT_EQ(stages["gemm"] > 0, std::string(model) == "dense");
      EXPECT_GT(stages["attention"], 0);
      EXPECT_GT(stages["head"], 0);
    }
  }
}

TEST(MetricsTest, OverheadIsMeasuredAfterLoadingAndWhenItIsAskedFor) {
  TestServer server({kSketch, kDense});
  const auto ratio = [&](const std::string& phase) {
    return server.Metric("ultrasketch_sketch_overhead_ratio", {absl::StrCat("\"", phase, "\"")});
  };
  const absl::Time deadline = absl::Now() + absl::Seconds(60);
  while (!ratio("decode").has_value() && absl::Now() < deadline) {
    absl::SleepFor(absl::Milliseconds(20));
  }
  EXPECT_GT(ratio("prefill").value_or(0), 0);
  EXPECT_GT(ratio("decode").value_or(0), 0);

  const Completed measured =
      RunTool({"models", "measure", "sketch", "--target", server.address(), "--json"});
  ASSERT_EQ(measured.exit_code, 0) << measured.err;
  const auto overhead = ParseOutput(measured);
  EXPECT_DOUBLE_EQ(ratio("decode").value_or(0), overhead["decode"].get<double>());
  const auto model = server.Connect()->GetModel("sketch");
  ASSERT_TRUE(model.ok() && model->sketch_overhead.has_value());
  EXPECT_EQ(model->sketch_overhead->prefill, overhead["prefill"].get<double>());

  const Completed refused = RunTool({"models", "measure", "dense", "--target", server.address()});
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_THAT(refused.err, HasSubstr("not compressed"));
  EXPECT_EQ(server.Metric("ultrasketch_sketch_overhead_ratio", {"\"dense\""}), std::nullopt);
  EXPECT_EQ(server.Stop(), 0);
}

TEST(MetricsTest, OverheadIsNotMeasuredWhenItIsTurnedOff) {
  TestServer server({kSketch}, {"--measure-overhead", "off"});
  ASSERT_TRUE(Generate(*server.Connect(), "sketch").ok());
  EXPECT_EQ(server.Metric("ultrasketch_sketch_overhead_ratio", {}), std::nullopt);
  EXPECT_EQ(server.process().err().find("overhead"), std::string::npos);
}

TEST(MetricsTest, AFileThatIsCutShortEndsItsModelAlone) {
  const TemporaryFolder folder;
  const fs::path cut = fs::path(folder.path()) / "cut";
  fs::copy(absl::StrCat(kModels, "/classics-6m"), cut);
  const fs::path weights = cut / "model.safetensors";
  fs::permissions(weights, fs::perms::owner_write, fs::perm_options::add);
  TestServer server({absl::StrCat("cut=", cut.string()), kSketch});
  const auto client = server.Connect();
  ASSERT_TRUE(Generate(*client, "cut").ok());

  fs::resize_file(weights, fs::file_size(weights) / 3);
  const absl::Status status = Generate(*client, "cut");
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(weights.string()));
  EXPECT_TRUE(Generate(*client, "sketch").ok());

  const absl::Time deadline = absl::Now() + absl::Seconds(60);
  const auto state = [&] { return client->GetModel("cut"); };
  while (state()->state != "failed" && absl::Now() < deadline) {
    absl::SleepFor(absl::Milliseconds(5));
  }
  EXPECT_EQ(state()->state, "failed");
  EXPECT_THAT(state()->error, HasSubstr("cut short"));
  EXPECT_EQ(Generate(*client, "cut").code(), absl::StatusCode::kUnavailable);

  // A good file brings it back.
  fs::remove(weights);
  fs::copy_file(absl::StrCat(kModels, "/classics-6m/model.safetensors"), weights);
  const auto loaded = client->LoadModel("cut");
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_TRUE(Generate(*client, "cut").ok());
  EXPECT_EQ(server.Stop(), 0);
}

struct Described {
  std::string type;
  std::set<std::string> labels;

  bool operator==(const Described&) const = default;
};

void PrintTo(const Described& described, std::ostream* out) {
  *out << described.type << " {" << absl::StrJoin(described.labels, ",") << "}";
}

// Of docs/metrics.md: rows "| `name` | type | `label`, `label` | meaning |".
std::map<std::string, Described> ReadTable() {
  const auto page = ReadFile(absl::StrCat(PROJECT_FOLDER, "/docs/metrics.md"));
  EXPECT_TRUE(page.ok()) << page.status();
  std::map<std::string, Described> table;
  for (const absl::string_view line : absl::StrSplit(page->c_str(), '\n')) {
    if (!absl::StartsWith(line, "| `")) continue;
    const std::vector<std::string> cells = absl::StrSplit(line, absl::ByAnyChar("|"));
    EXPECT_GE(cells.size(), 6u) << std::string(line);
    if (cells.size() < 6) continue;
    const std::vector<std::string> name = absl::StrSplit(cells[1], '`');
    Described described;
    described.type = std::string(absl::StripAsciiWhitespace(cells[2]));
    const std::vector<std::string> labels = absl::StrSplit(cells[3], '`');
    for (size_t i = 1; i < labels.size(); i += 2) described.labels.insert(labels[i]);
    EXPECT_GT(cells[4].size(), 10u) << name[1];
    EXPECT_TRUE(table.emplace(name[1], described).second) << name[1] << " twice";
  }
  return table;
}

std::map<std::string, Described> ReadScrape(const std::string& scrape) {
  std::map<std::string, Described> found;
  for (const absl::string_view line : absl::StrSplit(scrape.c_str(), '\n')) {
    const std::vector<std::string> words = absl::StrSplit(line, ' ');
    if (words.size() == 4 && words[0] == "#" && words[1] == "TYPE") {
      found[words[2]].type = words[3];
      continue;
    }
    if (line.empty() || line[0] == '#') continue;
    const size_t brace = line.find('{');
    std::string name(line.substr(0, std::min(brace, line.find(' '))));
    for (const char* suffix : {"_bucket", "_sum", "_count"}) {
      const std::string base(absl::StripSuffix(name, suffix));
      if (base != name && found.contains(base)) name = base;
    }
    EXPECT_TRUE(found.contains(name)) << std::string(line);
    if (brace == absl::string_view::npos) continue;
    for (const absl::string_view pair :
         absl::StrSplit(line.substr(brace + 1, line.rfind('}') - brace - 1), "\",")) {
      const std::string label(pair.substr(0, pair.find('=')));
      if (label != "le") found[name].labels.insert(label);
    }
  }
  return found;
}

TEST(MetricsTest, EachIsDescribedOnceAndAsItIs) {
  TestServer server({kSketch});
  ASSERT_EQ(RunTool({"models", "measure", "sketch", "--target", server.address()}).exit_code, 0);
  const auto described = ReadTable();
  const auto found = ReadScrape(server.Metrics());
  EXPECT_GT(found.size(), 25u);
  for (const auto& [name, metric] : found) {
    const auto row = described.find(name);
    if (row == described.end()) {
      ADD_FAILURE() << name << " is not in docs/metrics.md";
    } else {
      EXPECT_EQ(row->second, metric) << name;
    }
  }
  for (const auto& [name, metric] : described) {
    EXPECT_TRUE(found.contains(name)) << name << " is in docs/metrics.md, and is no metric";
  }
}

}  // namespace
}  // namespace ultrasketch
