// Metrics as a scraper sees them.
#include "server/metrics_endpoint.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/strings.h"
#include "tests/server/raw_grpc.h"
#include "tests/server/test_server.h"

namespace ultrasketch {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

TEST(MetricsEndpointTest, CountsWhatHappened) {
  TestServer server;
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(GenerateStream(server, Request("prompt", 10)).status.ok());
  }
  v1::GenerateRequest bad = Request("prompt");
  bad.set_max_tokens(0);
  ASSERT_FALSE(GenerateStream(server, bad).status.ok());
  const auto value = [&](const std::string& sample) { return server.Metric(sample).value_or(-1); };
  EXPECT_EQ(value(R"(ultrasketch_requests_total{code="OK",model="small"})"), 3);
  EXPECT_EQ(value(R"(ultrasketch_requests_total{code="INVALID_ARGUMENT",model="small"})"), 1);
  EXPECT_EQ(
      value(R"(ultrasketch_rejected_requests_total{model="small",reason="invalid_argument"})"), 1);
  EXPECT_EQ(value(R"(ultrasketch_prompt_tokens_total{model="small"})"), 3 * 6);
  EXPECT_EQ(value(R"(ultrasketch_generated_tokens_total{model="small"})"), 3 * 10);
  EXPECT_EQ(value(R"(ultrasketch_time_to_first_token_seconds_count{model="small"})"), 3);
  EXPECT_EQ(value(R"(ultrasketch_inter_token_latency_seconds_count{model="small"})"), 3 * 9);
  EXPECT_EQ(value(R"(ultrasketch_queue_duration_seconds_count{model="small"})"), 3);
  EXPECT_EQ(value(R"(ultrasketch_request_duration_seconds_count{model="small"})"), 4);
  EXPECT_EQ(value(R"(ultrasketch_step_duration_seconds_count{model="small",phase="prefill"})"), 3);
  EXPECT_EQ(value(R"(ultrasketch_step_duration_seconds_count{model="small",phase="decode"})"),
            3 * 9);
}

TEST(MetricsEndpointTest, CountsTheCallsOfEveryMethod) {
  TestServer server;
  const auto calls = [&](const std::string& method, const std::string& code) {
    return server
        .Metric(
            absl::StrCat("ultrasketch_calls_total{code=\"", code, "\",method=\"", method, "\"}"))
        .value_or(-1);
  };
  const auto open = [&](const std::string& method) {
    return server.Metric(absl::StrCat("ultrasketch_open_calls{method=\"", method, "\"}"))
        .value_or(-1);
  };
  const std::string generation = "ultrasketch.v1.GenerationService/";
  const std::string models = "ultrasketch.v1.ModelService/";
  for (const std::string& method :
       {generation + "Generate", generation + "GenerateStream", generation + "Score",
        generation + "Tokenize", generation + "Detokenize", models + "ListModels",
        models + "LoadModel", std::string("grpc.health.v1.Health/Check")}) {
    EXPECT_EQ(calls(method, "OK"), 0) << method;
    EXPECT_EQ(calls(method, "RESOURCE_EXHAUSTED"), 0) << method;
    EXPECT_EQ(open(method), 0) << method;
  }

  ASSERT_TRUE(GenerateStream(server, Request("prompt", 10)).status.ok());
  v1::TokenizeRequest tokenize;
  tokenize.set_text("text");
  v1::TokenizeResponse tokens;
  {
    grpc::ClientContext context;
    ASSERT_TRUE(server.generation().Tokenize(&context, tokenize, &tokens).ok());
  }
  tokenize.set_model("unknown");
  {
    grpc::ClientContext context;
    ASSERT_FALSE(server.generation().Tokenize(&context, tokenize, &tokens).ok());
  }
  {
    grpc::ClientContext context;
    v1::ListModelsResponse listed;
    ASSERT_TRUE(server.models().ListModels(&context, {}, &listed).ok());
  }
  const grpc::Status malformed =
      CallRaw(server.NewChannel(), "/ultrasketch.v1.GenerationService/Tokenize", "\xff\xff").status;
  ASSERT_FALSE(malformed.ok());
  EXPECT_EQ(calls(generation + "GenerateStream", "OK"), 1);
  EXPECT_EQ(calls(generation + "Tokenize", "OK"), 1);
  EXPECT_EQ(calls(generation + "Tokenize", "NOT_FOUND"), 1);
  EXPECT_EQ(calls(generation + "Tokenize",
                  absl::StatusCodeToString(static_cast<absl::StatusCode>(malformed.error_code()))),
            1);
  EXPECT_EQ(calls(models + "ListModels", "OK"), 1);
  while (open(generation + "Tokenize") != 0) std::this_thread::yield();
}

TEST(MetricsEndpointTest, NamesThatClientsInventAreOneMethod) {
  TestServer server;
  const auto num_lines = [&] {
    const std::string text = server.Scrape();
    return std::count(text.begin(), text.end(), '\n');
  };
  const auto before = num_lines();
  for (int i = 0; i < 20; ++i) {
    const std::string name = absl::StrCat("/invented.Service", i, "/Method");
    EXPECT_EQ(CallRaw(server.NewChannel(), name, "").status.error_code(),
              grpc::StatusCode::UNIMPLEMENTED);
  }
  EXPECT_EQ(num_lines(), before);
  EXPECT_EQ(server.Metric(R"(ultrasketch_calls_total{code="UNIMPLEMENTED",method="other"})"), 20);
}

TEST(MetricsEndpointTest, AnswersOnEveryAddressOfTheHost) {
  for (const std::string host : {"127.0.0.1", "localhost", "::1"}) {
    if (!CheckCanListen({host, 0}).ok()) continue;  // a machine without IPv6
    const Metrics metrics;
    const auto endpoint = MetricsEndpoint::Start({host, 0}, {metrics.collectable()});
    ASSERT_TRUE(endpoint.ok()) << endpoint.status();
    const auto sockets = ListeningSockets::Open((*endpoint)->address());
    EXPECT_FALSE(sockets.ok()) << host;  // it is in use
    if (host == "::1") continue;
    const int port = (*endpoint)->address().port;
    EXPECT_THAT(ExchangeBytes(port, "GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\n\r\n"),
                AllOf(StartsWith("HTTP/1.1 200 "), HasSubstr("text/plain; version=0.0.4"),
                      HasSubstr("ultrasketch_connections 0")));
    EXPECT_THAT(ExchangeBytes(port, "HEAD /metrics HTTP/1.1\r\nHost: a\r\n\r\n"),
                AllOf(StartsWith("HTTP/1.1 200 "), Not(HasSubstr("ultrasketch"))));
    EXPECT_THAT(ExchangeBytes(port, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
                StartsWith("HTTP/1.1 404 "));
    EXPECT_THAT(ExchangeBytes(port, "POST /metrics HTTP/1.1\r\nHost: a\r\n\r\n"),
                StartsWith("HTTP/1.1 405 "));
    // No request, or one of no end, is answered with the connection's.
    EXPECT_EQ(ExchangeBytes(port, "no request at all\r\n\r\n"), "");
    EXPECT_EQ(ExchangeBytes(port, "GET / HTTP/1.1\r\nA: " + std::string(20'000, 'a')), "");
  }
}

TEST(MetricsEndpointTest, ShowsTheStateOfTheModels) {
  TestServer server;
  const auto value = [&](const std::string& sample) { return server.Metric(sample).value_or(-1); };
  EXPECT_EQ(value(R"(ultrasketch_requests_running{model="small"})"), 0);
  EXPECT_EQ(value(R"(ultrasketch_requests_waiting{model="small"})"), 0);
  EXPECT_EQ(value(R"(ultrasketch_kv_blocks{model="small",state="free"})"), 256);
  EXPECT_EQ(value(R"(ultrasketch_kv_blocks{model="small",state="cached"})"), 0);
  EXPECT_EQ(value(R"(ultrasketch_kv_blocks{model="small",state="used"})"), 0);
  EXPECT_EQ(value(R"(ultrasketch_prefix_cache_tokens_total{model="small",result="hit"})"), 0);
  EXPECT_EQ(value(R"(ultrasketch_prefix_cache_tokens_total{model="small",result="miss"})"), 0);
  const auto memory = [&](const std::string& model, const std::string& kind) {
    return value(R"(ultrasketch_memory_bytes{model=")" + model + R"(",device="cpu",kind=")" + kind +
                 R"("})");
  };
  EXPECT_EQ(memory("small", "weights"), 1000);
  EXPECT_EQ(memory("small", "embedding"), 200);
  EXPECT_EQ(memory("", "workspace"), 30);
  EXPECT_EQ(value(R"(ultrasketch_bytes_per_weight{model="small",scope="linear"})"), 16 / 8.0);
  EXPECT_EQ(value(R"(ultrasketch_bytes_per_weight{model="small",scope="file"})"), 17.5 / 8);
  EXPECT_EQ(value(R"(ultrasketch_bytes_per_weight{model="small",scope="resident"})"), 1.2);
  EXPECT_GT(memory("", "other"), 1 << 20);
  EXPECT_GT(value("process_resident_memory_bytes"), 1 << 20);
  EXPECT_GT(value("process_open_fds"), 0);
  EXPECT_THAT(server.Scrape(), HasSubstr(R"(backend="cpu"} 1)"));
}

TEST(MetricsEndpointTest, KindsOfMemoryAddUpToTheProcess) {
  TestServer server;
  const std::string scrape = server.Scrape();
  double sum = 0;
  double resident = 0;
  size_t begin = 0;
  while (begin < scrape.size()) {
    const size_t end = std::min(scrape.find('\n', begin), scrape.size());
    const std::string line = scrape.substr(begin, end - begin);
    begin = end + 1;
    const double last = std::strtod(line.c_str() + line.rfind(' ') + 1, nullptr);
    if (line.rfind("ultrasketch_memory_bytes{", 0) == 0) sum += last;
    if (line.rfind("process_resident_memory_bytes ", 0) == 0) resident = last;
  }
  EXPECT_EQ(sum, resident);
  EXPECT_GT(resident, 0);
}

TEST(MetricsEndpointTest, ClientsNamesNeverBecomeLabels) {
  TestServer server;
  for (int i = 0; i < 5; ++i) {
    v1::GenerateRequest request = Request("x");
    request.set_model("name" + std::to_string(i));
    GenerateStream(server, request);
  }
  const std::string scrape = server.Scrape();
  EXPECT_EQ(scrape.find("name0"), std::string::npos);
  EXPECT_EQ(
      server.Metric(R"(ultrasketch_rejected_requests_total{model="",reason="unknown_model"})"), 5);
}

TEST(MetricsEndpointTest, BoundsOfBucketsPrintAsTheyWereMeant) {
  TestServer server;
  std::istringstream lines(server.Scrape());
  std::set<std::string> bounds;
  for (std::string line; std::getline(lines, line);) {
    // prometheus-cpp writes it last; a summary's `quantile` ends the same.
    size_t begin = line.find(",le=\"");
    if (begin == std::string::npos) continue;
    begin += 5;
    bounds.insert(line.substr(begin, line.find('"', begin) - begin));
  }
  EXPECT_EQ(bounds,
            (std::set<std::string>{
                "2e-05",  "3e-05",   "5e-05", "7.2e-05", "0.0001", "0.00015", "0.0002", "0.0003",
                "0.0005", "0.00075", "0.001", "0.0015",  "0.002",  "0.003",   "0.005",  "0.0075",
                "0.01",   "0.015",   "0.02",  "0.03",    "0.05",   "0.075",   "0.1",    "0.15",
                "0.2",    "0.3",     "0.5",   "0.75",    "1",      "1.5",     "2",      "3",
                "5",      "7.5",     "10",    "15",      "20",     "30",      "45",     "60",
                "90",     "120",     "180",   "300",     "450",    "600",     "+Inf"}));
}

// The body of an HTTP answer.
std::string BodyOf(const std::string& answer) {
  const size_t end = answer.find("\r\n\r\n");
  return end == std::string::npos ? "" : answer.substr(end + 4);
}

// What `promtool check metrics` asks of names: https://prometheus.io/docs/practices/naming.
TEST(MetricsEndpointTest, NamesFollowTheConventionsOfPrometheus) {
  TestServer server;
  ASSERT_TRUE(GenerateStream(server, Request("prompt", 10)).status.ok());
  std::istringstream lines(BodyOf(server.Scrape()));
  std::map<std::string, std::string> types;
  std::set<std::string> helps;
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string hash, keyword, name, type;
    words >> hash >> keyword >> name >> type;
    if (hash != "#") continue;
    if (keyword == "HELP" && !type.empty()) helps.insert(name);
    if (keyword == "TYPE") {
      EXPECT_TRUE(types.emplace(name, type).second) << name << " twice";
    }
  }
  EXPECT_GT(types.size(), 20u);
  for (const auto& [name, type] : types) {
    EXPECT_TRUE(helps.contains(name)) << name;
    EXPECT_EQ(name.ends_with("_total"), type == "counter") << name << ", a " << type;
    for (const char* suffix : {"_count", "_sum", "_bucket"}) {
      EXPECT_FALSE(name.ends_with(suffix)) << name;
    }
    EXPECT_EQ(name.find(type), std::string::npos) << name;
    EXPECT_TRUE(std::all_of(name.begin(), name.end(), [](char c) {
      return c == '_' || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
    })) << name;
    std::istringstream words(name);
    for (std::string word; std::getline(words, word, '_');) {
      EXPECT_THAT((std::set<std::string>{"bits", "bit", "milliseconds", "ms", "microseconds", "us",
                                         "minutes", "kilobytes", "megabytes", "percent"}),
                  Not(Contains(word)))
          << name << ": not a base unit";
    }
  }
}

TEST(MetricsEndpointTest, PromtoolFindsNothing) {
  if (std::system("command -v promtool >/dev/null") != 0) GTEST_SKIP() << "no promtool here";
  TestServer server;
  ASSERT_TRUE(GenerateStream(server, Request("prompt", 10)).status.ok());
  const std::string body = BodyOf(server.Scrape());
  FILE* const promtool = popen("promtool check metrics 2>&1", "w");
  ASSERT_NE(promtool, nullptr);
  EXPECT_EQ(fwrite(body.data(), 1, body.size(), promtool), body.size());
  EXPECT_EQ(pclose(promtool), 0) << "what it says is above";
}

TEST(MetricsEndpointTest, ATakenPortIsAnError) {
  TestServer server;
  const auto endpoint = MetricsEndpoint::Start(server.server().address(), {});
  ASSERT_FALSE(endpoint.ok());
  EXPECT_THAT(S(endpoint.status().message()), StartsWith("cannot listen on"));
  EXPECT_THAT(S(endpoint.status().message()), HasSubstr("in use"));
}

}  // namespace
}  // namespace ultrasketch
