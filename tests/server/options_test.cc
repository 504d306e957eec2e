// The daemon's command line and configuration file.
#include "server/options.h"

#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/base/temporary_folder.h"

namespace ultrasketch {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

struct Parsed {
  std::variant<DaemonOptions, ExitCode> result = kExitFailed;
  std::string out;
  std::string err;

  bool ok() const { return std::holds_alternative<DaemonOptions>(result); }
  const DaemonOptions& options() const { return std::get<DaemonOptions>(result); }
};

Parsed Parse(std::vector<std::string> arguments) {
  std::vector<const char*> argv = {"ultrasketchd"};
  for (const std::string& argument : arguments) argv.push_back(argument.c_str());
  Parsed parsed;
  ::testing::internal::CaptureStdout();
  ::testing::internal::CaptureStderr();
  parsed.result = ParseDaemonOptions(static_cast<int>(argv.size()), argv.data());
  parsed.out = ::testing::internal::GetCapturedStdout();
  parsed.err = ::testing::internal::GetCapturedStderr();
  return parsed;
}

// Expects a usage error that says `message`.
void ExpectUsageError(std::vector<std::string> arguments, const std::string& message) {
  const Parsed parsed = Parse(std::move(arguments));
  ASSERT_FALSE(parsed.ok()) << message;
  EXPECT_EQ(std::get<ExitCode>(parsed.result), kExitUsage);
  EXPECT_THAT(parsed.err, HasSubstr(message));
  EXPECT_EQ(parsed.out, "");
}

class ConfigFileTest : public ::testing::Test {
 protected:
  std::string Write(const std::string& text) { return folder_.Write("config.toml", text); }

  TemporaryFolder folder_;
};

TEST(OptionsTest, NamesTheTypesOfTheKvCache) {
  for (const KvCacheType type : kKvCacheTypes) {
    const Parsed parsed =
        Parse({"--model", "a=/models/a", "--kv-cache-type", KvCacheTypeName(type)});
    ASSERT_TRUE(parsed.ok()) << parsed.err;
    EXPECT_EQ(parsed.options().load.kv_cache_type, type);
  }
  EXPECT_EQ(Parse({"--model", "a=/models/a"}).options().load.kv_cache_type, KvCacheType::kFp16);
  ExpectUsageError({"--model", "a=/models/a", "--kv-cache-type", "float"}, "fp16,int8,int4,fp32");
}

TEST_F(ConfigFileTest, HoldsWhateverTheCommandLineTakes) {
  const Parsed parsed = Parse({"--config", Write(R"(
# A comment, with a "quote.
model = [
  "first=/models/with space, comma#and hash",  # and another
  "second=/models/b",
]
listen = "0.0.0.0:9001"
insecure = true
reflection = false
threads = 3
drain-seconds = 12345.678125
memory-limit = "2KiB"
kv-cache-tokens = "auto"
kv-cache-type = "int4"
)")});
  ASSERT_TRUE(parsed.ok()) << parsed.err;
  const DaemonOptions& options = parsed.options();
  ASSERT_EQ(options.models.size(), 2u);
  EXPECT_EQ(options.models[0].folder, "/models/with space, comma#and hash");
  EXPECT_EQ(options.server.listen.ToString(), "0.0.0.0:9001");
  EXPECT_FALSE(options.server.reflection);
  EXPECT_EQ(options.load.num_threads, 3);
  EXPECT_EQ(options.drain_patience, absl::Seconds(12345.678125));
  EXPECT_EQ(options.load.memory_limit_bytes, 2048);
  EXPECT_EQ(options.load.kv_cache_type, KvCacheType::kInt4);
}

TEST_F(ConfigFileTest, GivesWayToTheCommandLine) {
  const std::string config = Write("threads = 3\nmodel-repository = \"/a\"\n");
  const Parsed parsed = Parse({"--threads", "5", "--config", config});
  ASSERT_TRUE(parsed.ok()) << parsed.err;
  EXPECT_EQ(parsed.options().load.num_threads, 5);
  EXPECT_EQ(parsed.options().model_repository, "/a");
}

TEST_F(ConfigFileTest, ErrorsNameTheFileAndTheKey) {
  const std::string path = folder_.File("config.toml");
  const auto expect = [&](const std::string& text, const std::string& message) {
    Write(text);
    const Parsed parsed = Parse({"--config", path, "--model", "a=/a"});
    ASSERT_FALSE(parsed.ok()) << text;
    EXPECT_EQ(std::get<ExitCode>(parsed.result), kExitUsage);
    EXPECT_THAT(parsed.err, AllOf(HasSubstr(path), HasSubstr(message))) << text;
  };
  expect("threds = 3\n", "threds");
  expect("threads = 3\n[models]\na = \"/a\"\n", "models");
  expect("threads = 3\nlisten = \"127.0.0.1:1\n", "line 2");
  expect("threads = 3\nthreads = 4\n", "line 2");
  expect("config = \"other.toml\"\n", "config");
  expect("print-config = true\n", "print-config");
  ExpectUsageError({"--config", Write("threads = -1\n"), "--model", "a=/a"}, "--threads");
  ExpectUsageError({"--config", "/nonexistent/config.toml"}, "/nonexistent/config.toml");
}

TEST_F(ConfigFileTest, PrintedOnesReadBackToTheSame) {
  const Parsed first =
      Parse({"--print-config", "--model", "a=/x \"y\" #z", "--model", "b=/b", "--memory-limit",
             "1GiB", "--drain-seconds", "0.25", "--insecure", "--listen", "[::]:8001",
             "--reflection", "off", "--token-file", "123", "--kv-cache-tokens", "4096"});
  ASSERT_FALSE(first.ok());
  EXPECT_EQ(std::get<ExitCode>(first.result), kExitOk) << first.err;
  EXPECT_THAT(first.out,
              AllOf(HasSubstr("memory-limit = 1073741824\n"), HasSubstr("insecure = true\n"),
                    HasSubstr("kv-cache-tokens = 4096\n"), HasSubstr("admin-rpcs = 'auto'\n")));
  const std::string config = Write(first.out);
  EXPECT_EQ(Parse({"--print-config", "--config", config}).out, first.out);
  const Parsed read = Parse({"--config", config});
  ASSERT_TRUE(read.ok()) << read.err;
  EXPECT_EQ(read.options().models.at(0).folder, "/x \"y\" #z");
  EXPECT_EQ(read.options().token_file, "123");
  EXPECT_EQ(read.options().drain_patience, absl::Seconds(0.25));
}

TEST_F(ConfigFileTest, PrintedDefaultsAreTheDefaults) {
  const Parsed printed = Parse({"--print-config"});
  EXPECT_EQ(std::get<ExitCode>(printed.result), kExitOk);
  EXPECT_THAT(printed.out, HasSubstr("listen = '127.0.0.1:8001'\n"));
  const Parsed with = Parse({"--model", "a=/a", "--config", Write(printed.out)});
  const Parsed without = Parse({"--model", "a=/a"});
  ASSERT_TRUE(with.ok() && without.ok()) << with.err;
  EXPECT_EQ(with.options().drain_patience, without.options().drain_patience);
  EXPECT_EQ(with.options().load.num_threads, without.options().load.num_threads);
  EXPECT_EQ(with.options().server.max_connections, without.options().server.max_connections);
  EXPECT_FALSE(with.options().tls.has_value());
}

TEST(ModelOptionTest, NamesAreChecked) {
  ExpectUsageError({}, "--model");
  ExpectUsageError({"--model", "no-equals-sign"}, "NAME=DIR");
  ExpectUsageError({"--model", "two words=/a"}, "no usable name");
  ExpectUsageError({"--model", "a=/a", "--model", "a=/b"}, "each name once");
}

TEST(SecurityOptionsTest, PlainTextForOthersMustBeAskedFor) {
  for (const char* address : {"0.0.0.0:8001", "[::]:8001", "192.0.2.1:8001"}) {
    ExpectUsageError({"--model", "a=/a", "--listen", address}, "--insecure");
    EXPECT_TRUE(Parse({"--model", "a=/a", "--listen", address, "--insecure"}).ok());
    EXPECT_TRUE(
        Parse({"--model", "a=/a", "--listen", address, "--tls-cert", "c", "--tls-key", "k"}).ok());
    // A token does not help who can be listened to.
    ExpectUsageError({"--model", "a=/a", "--listen", address, "--token-file", "t"}, "--insecure");
  }
  for (const char* address : {"127.0.0.1:8001", "127.9.9.9:8001", "[::1]:8001", "localhost:0"}) {
    EXPECT_TRUE(Parse({"--model", "a=/a", "--listen", address}).ok()) << address;
  }
}

TEST(SecurityOptionsTest, TlsFilesComeTogether) {
  ExpectUsageError({"--model", "a=/a", "--tls-cert", "c"}, "--tls-key");
  ExpectUsageError({"--model", "a=/a", "--tls-key", "k"}, "--tls-cert");
  ExpectUsageError({"--model", "a=/a", "--tls-client-ca", "ca"}, "--tls-cert");
  const Parsed parsed =
      Parse({"--model", "a=/a", "--tls-cert", "c", "--tls-key", "k", "--tls-client-ca", "ca"});
  ASSERT_TRUE(parsed.ok()) << parsed.err;
  EXPECT_EQ(parsed.options().tls->certificate, "c");
  EXPECT_EQ(parsed.options().tls->key, "k");
  EXPECT_EQ(parsed.options().tls->client_ca, "ca");
}

TEST(SecurityOptionsTest, AdminCallsAreOnWhereTheyAreProtected) {
  const auto admin_rpcs = [](std::vector<std::string> arguments) {
    arguments.insert(arguments.end(), {"--model", "a=/a"});
    const Parsed parsed = Parse(std::move(arguments));
    EXPECT_TRUE(parsed.ok()) << parsed.err;
    return parsed.ok() && parsed.options().server.admin_rpcs;
  };
  EXPECT_TRUE(admin_rpcs({}));
  EXPECT_FALSE(admin_rpcs({"--listen", "0.0.0.0:1", "--insecure"}));
  EXPECT_FALSE(admin_rpcs({"--listen", "0.0.0.0:1", "--tls-cert", "c", "--tls-key", "k"}));
  EXPECT_TRUE(admin_rpcs(
      {"--listen", "0.0.0.0:1", "--tls-cert", "c", "--tls-key", "k", "--token-file", "t"}));
  EXPECT_TRUE(admin_rpcs({"--listen", "0.0.0.0:1", "--insecure", "--admin-rpcs", "on"}));
  EXPECT_FALSE(admin_rpcs({"--admin-rpcs", "off"}));
}

TEST(OptionsTest, AConnectionsAgeHasNoBoundOrOneOfAtLeastASecond) {
  const std::vector<std::string> model = {"--model", "a=b", "--max-connection-age-seconds"};
  const auto with = [&model](const std::string& seconds) {
    std::vector<std::string> arguments = model;
    arguments.push_back(seconds);
    return arguments;
  };
  EXPECT_EQ(Parse({"--model", "a=b"}).options().server.max_connection_age,
            absl::InfiniteDuration());
  EXPECT_EQ(Parse(with("0")).options().server.max_connection_age, absl::InfiniteDuration());
  EXPECT_EQ(Parse(with("300")).options().server.max_connection_age, absl::Seconds(300));
  ExpectUsageError(with("0.5"), "--max-connection-age-seconds");
  ExpectUsageError(with("-1"), "--max-connection-age-seconds");
}

TEST(OptionsTest, RefusalsArePausedAsLongAsIsSaid) {
  const auto pause = [](std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {"--model", "a=b"});
    return Parse(std::move(arguments)).options().server.call_limits.refusals.max_pause;
  };
  EXPECT_EQ(pause({}), absl::Milliseconds(30));
  EXPECT_EQ(pause({"--refusal-pause-ms", "0"}), absl::ZeroDuration());
  EXPECT_EQ(pause({"--refusal-pause-ms", "2.5"}), absl::Microseconds(2500));
  ExpectUsageError({"--model", "a=b", "--refusal-pause-ms", "nan"}, "--refusal-pause-ms");
  ExpectUsageError({"--model", "a=b", "--refusal-pause-ms", "1001"}, "--refusal-pause-ms");
}

}  // namespace
}  // namespace ultrasketch
