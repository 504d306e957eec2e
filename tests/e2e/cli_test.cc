// The contract of the `ultrasketch` command that needs no server.
#include <signal.h>

#include <cmath>
#include <filesystem>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/base/file.h"
#include "tests/e2e/tool.h"

namespace ultrasketch {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;

const std::vector<std::vector<std::string>>& Commands() {
  static const auto* const commands = new std::vector<std::vector<std::string>>{
      {"compress"},       {"inspect"},          {"eval"},
      {"generate"},       {"tokenize"},         {"detokenize"},
      {"chat"},           {"health"},           {"models", "list"},
      {"models", "load"}, {"models", "unload"}, {"models", "measure"},
      {"import-gguf"},    {"bench", "quality"}, {"bench", "serve"},
      {"bench", "engine"}};
  return *commands;
}

TEST(CliTest, EveryCommandExplainsItself) {
  for (std::vector<std::string> command : Commands()) {
    command.push_back("--help");
    const Completed help = RunTool(command);
    EXPECT_EQ(help.exit_code, 0);
    EXPECT_THAT(help.out, HasSubstr("Example"));
    EXPECT_THAT(help.out, HasSubstr("--json"));
    EXPECT_THAT(help.err, IsEmpty());
  }
  const Completed help = RunTool({"--help"});
  EXPECT_EQ(help.exit_code, 0);
  for (const auto& command : Commands()) EXPECT_THAT(help.out, HasSubstr(command.front()));
  const Completed version = RunTool({"--version"});
  EXPECT_EQ(version.exit_code, 0);
  EXPECT_THAT(version.out, StartsWith("ultrasketch "));
}

TEST(CliTest, UsageErrorsExitWithTwo) {
  const std::vector<std::vector<std::string>> lines = {
      {},
      {"frobnicate"},
      {"--frobnicate"},
      {"models"},
      {"models", "frobnicate"},
      {"models", "list"},
      {"models", "load", "--target", "localhost:1"},
      {"compress", "--model", "a"},
      {"compress", "--model", "a", "--out", "b", "--bitz", "1"},
      {"compress", "--model", "a", "--out", "b", "--bits", "half"},
      {"compress", "--model", "a", "--out", "b", "--seed", "-1"},
      {"inspect"},
      {"inspect", "a", "b"},
      {"eval", "--model", "a"},
      {"eval", "--model", "a", "--text", "b", "--context", "0"},
      {"generate", "--model", "a"},
      {"generate", "--prompt", "a"},
      {"generate", "--model", "a", "--prompt", "b", "--prompt-file", "c"},
      {"generate", "--model", "a", "--prompt", "b", "--messages", "c"},
      {"generate", "--model", "a", "--messages", "c", "--no-add-special-tokens"},
      {"chat"},
      {"chat", "--model", "a", "--temperature", "x"},
      {"generate", "--model", "a", "--prompt", "b", "--seed", "18446744073709551616"},
      {"generate", "--model", "a", "--prompt", "b", "--max-tokens", "99999999999"},
      {"generate", "--model", "a", "--prompt", "b", "--timeout", "0"},
      {"generate", "--model", "a", "--prompt", "b", "--logit-bias", "5:1"},
      {"generate", "--model", "a", "--prompt", "b", "--stop-token-id", "x"},
      {"tokenize", "--text", "a"},
      {"detokenize", "--model", "a", "x"},
      {"import-gguf", "a"},
      {"import-gguf", "a", "b", "--dtype", "int8"},
      {"bench"},
      {"bench", "serve", "--concurrency", "1"},
      {"bench", "serve", "--target", "localhost:1"},
      {"bench", "serve", "--target", "localhost:1", "--concurrency", "0"},
      {"bench", "serve", "--target", "localhost:1", "--concurrency", "1", "--rate", "1"},
      {"bench", "serve", "--target", "localhost:1", "--rate", "-1"},
      {"bench", "serve", "--target", "localhost:1", "--rate", "1", "--arrivals", "uniform"},
      {"bench", "serve", "--target", "localhost:1", "--rate", "1", "--retry"},
      {"bench", "serve", "--target", "localhost:1", "--rate", "1", "--prompt-tokens", "9:3"},
      {"bench", "serve", "--target", "localhost:1", "--rate", "1", "--output-tokens", "many"},
      {"bench", "serve", "--target", "localhost:1", "--rate", "1", "--duration", "0"},
      {"bench", "serve", "--target", "localhost:1", "--rate", "1", "--slo-ttft", "fast"},
      {"bench", "serve", "--target", "localhost:1", "--rate", "nan"},
      {"bench", "serve", "--target", "localhost:1", "--rate", "1", "--temperature", "nan"},
      {"bench", "serve", "--target", "localhost:1", "--trace", "a", "--trace-speed", "nan"},
      {"bench", "kernel", "--bits", "nan"},
      {"bench", "kernel", "--seconds", "nan"},
      {"bench", "step", "--bits", "nan"},
      {"bench", "step", "--seconds", "nan"},
      {"compress", "--model", "a", "--out", "b", "--own-share", "nan"},
      {"self-text", "--model", "a", "--out", "b", "--free-share", "nan"},
      {"health", "--target", "localhost:1", "--wait", "nan"},
      {"bench", "engine", "--model", "a"},
      {"bench", "engine", "--model", "a", "--rate", "1"},
  };
  for (const auto& line : lines) {
    SCOPED_TRACE(absl::StrJoin(line, " "));
    const Completed run = RunTool(line);
    EXPECT_EQ(run.exit_code, 2);
    EXPECT_THAT(run.out, IsEmpty());
    EXPECT_THAT(run.err, HasSubstr("--help"));
  }
}

TEST(CliTest, FailuresExitWithOneAndNameTheCause) {
  const std::string missing = "/nonexistent/model";
  const std::vector<std::vector<std::string>> lines = {
      {"compress", "--model", missing, "--out", "/nonexistent/out"},
      {"inspect", missing},
      {"eval", "--model", missing, "--text", missing},
      {"eval", "--model", SAMPLE_MODEL_DIR, "--text", missing},
      {"generate", "--model", missing, "--prompt", "x"},
      {"tokenize", "--model", missing, "--text", "x"},
      {"detokenize", "--model", missing, "1"},
      {"import-gguf", missing, "/nonexistent/out"},
      {"bench", "engine", "--model", missing, "--concurrency", "1"},
      {"bench", "engine", "--model", SAMPLE_MODEL_DIR, "--concurrency", "1", "--prompt-tokens",
       "file:" + missing},
  };
  for (std::vector<std::string> line : lines) {
    SCOPED_TRACE(absl::StrJoin(line, " "));
    const Completed plain = RunTool(line);
    EXPECT_EQ(plain.exit_code, 1);
    EXPECT_THAT(plain.out, IsEmpty());
    EXPECT_THAT(plain.err, HasSubstr("/nonexistent/model"));
    line.push_back("--json");
    const Completed json = RunTool(line);
    EXPECT_EQ(json.exit_code, 1);
    const auto error = ParseOutput(json);
    ASSERT_TRUE(error.contains("error"));
    EXPECT_EQ(error["error"]["code"], "NOT_FOUND");
    EXPECT_THAT(error["error"]["message"].get<std::string>(), HasSubstr("/nonexistent/model"));
  }
}

TEST(CliTest, UnreachableServerIsAFailure) {
  for (const auto& line : std::vector<std::vector<std::string>>{
           {"generate", "--target", "unix:/nonexistent/socket", "--prompt", "x", "--json"},
           {"models", "list", "--target", "unix:/nonexistent/socket", "--json"},
           {"bench", "serve", "--target", "unix:/nonexistent/socket", "--rate", "1", "--json"}}) {
    const Completed run = RunTool(line);
    EXPECT_EQ(run.exit_code, 1);
    EXPECT_EQ(ParseOutput(run)["error"]["code"], "UNAVAILABLE");
  }
}

TEST(CliTest, TokenizingAndBackGivesTheText) {
  const std::string text =
      "Call me Ishmael.\n\tNaïve — “quoted” 日本語 🙂 <|endoftext|>  ";
  const Completed tokenized =
      RunTool({"tokenize", "--model", SAMPLE_MODEL_DIR, "--no-special-tokens", "--json"}, text);
  ASSERT_EQ(tokenized.exit_code, 0) << tokenized.err;
  const auto tokens = ParseOutput(tokenized);
  EXPECT_EQ(tokens["token_ids"].size(), tokens["tokens"].size());
  const Completed from_option = RunTool(
      {"tokenize", "--model", SAMPLE_MODEL_DIR, "--text", text, "--no-special-tokens", "--json"});
  EXPECT_EQ(from_option.out, tokenized.out);

  // As plain text, through standard input, and as arguments.
  const Completed plain =
      RunTool({"tokenize", "--model", SAMPLE_MODEL_DIR, "--no-special-tokens"}, text);
  const Completed back = RunTool({"detokenize", "--model", SAMPLE_MODEL_DIR, "--json"}, plain.out);
  ASSERT_EQ(back.exit_code, 0) << back.err;
  EXPECT_EQ(ParseOutput(back)["text"], text);
  std::vector<std::string> line = {"detokenize", "--model", SAMPLE_MODEL_DIR, "--json"};
  for (const auto& id : tokens["token_ids"]) line.push_back(absl::StrCat(id.get<int32_t>()));
  EXPECT_EQ(RunTool(line).out, back.out);
}

TEST(CliTest, TokenizingNeedsNothingButTheTokenizer) {
  const TemporaryFolder folder;
  std::filesystem::copy(absl::StrCat(SAMPLE_MODEL_DIR, "/tokenizer.json"),
                        folder.path() + "/tokenizer.json");
  const Completed run = RunTool({"tokenize", "--model", folder.path(), "--text", "a"});
  EXPECT_EQ(run.exit_code, 0) << run.err;
}

TEST(CliTest, TokenizingTakesSpecialTokensForTextWhenAsked) {
  const std::string text = "said <|endoftext|>";
  const auto ids = [&](const std::vector<std::string>& options) {
    std::vector<std::string> line = {"tokenize", "--model", SAMPLE_MODEL_DIR,
                                     "--text",   text,      "--json"};
    line.insert(line.end(), options.begin(), options.end());
    return ParseOutput(RunTool(line))["token_ids"].get<std::vector<int32_t>>();
  };
  EXPECT_THAT(ids({}), ::testing::Contains(0));
  EXPECT_THAT(ids({"--split-special-tokens"}), Not(::testing::Contains(0)));
}

// The files beside tokenizer.json count: add_prefix_space is obeyed where transformers obeys it,
// and what cannot be used is a warning.
TEST(CliTest, TokenizingReadsTheConfigurationOfTheTokenizer) {
  const TemporaryFolder folder;
  std::filesystem::copy(TEST_DATA_DIR "/tokenizer/llama2.json", folder.path() + "/tokenizer.json");
  const std::vector<std::string> line = {"tokenize", "--model",     folder.path(),
                                         "--text",   "hello world", "--json"};
  EXPECT_EQ(ParseOutput(RunTool(line))["token_ids"], nlohmann::json({1, 343, 320, 541, 364, 1266}));
  ASSERT_TRUE(
      WriteFileAtomically(folder.path() + "/tokenizer_config.json",
                          R"({"tokenizer_class": "LlamaTokenizer", "add_prefix_space": false})")
          .ok());
  EXPECT_EQ(ParseOutput(RunTool(line))["token_ids"], nlohmann::json({1, 320, 541, 364, 1266}));
  ASSERT_TRUE(WriteFileAtomically(folder.path() + "/tokenizer_config.json",
                                  R"({"tokenizer_class": "LlamaTokenizer",})")
                  .ok());
  const Completed broken = RunTool(line);
  EXPECT_EQ(ParseOutput(broken)["token_ids"], nlohmann::json({1, 343, 320, 541, 364, 1266}));
  EXPECT_THAT(broken.err, HasSubstr("warning: "));
  EXPECT_THAT(broken.err, HasSubstr("tokenizer_config.json"));
}

TEST(CliTest, DetokenizingRefusesWhatIsNoToken) {
  const Completed beyond = RunTool({"detokenize", "--model", SAMPLE_MODEL_DIR, "8192"});
  EXPECT_EQ(beyond.exit_code, 1);
  EXPECT_THAT(beyond.err, HasSubstr("8192"));
  const Completed word = RunTool({"detokenize", "--model", SAMPLE_MODEL_DIR}, "12 twelve");
  EXPECT_EQ(word.exit_code, 1);
  EXPECT_THAT(word.err, HasSubstr("twelve"));
}

TEST(CliTest, TokenizingRefusesIllFormedText) {
  const Completed run = RunTool({"tokenize", "--model", SAMPLE_MODEL_DIR, "--json"}, "a\xff");
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_EQ(ParseOutput(run)["error"]["code"], "INVALID_ARGUMENT");
}

TEST(CliTest, WarnsOnceOfWhatAModelsFilesContradict) {
  const TemporaryFolder folder;
  for (const auto& entry : std::filesystem::directory_iterator(SAMPLE_MODEL_DIR)) {
    if (entry.is_regular_file()) std::filesystem::copy(entry.path(), folder.path());
  }
  ASSERT_TRUE(WriteFileAtomically(folder.path() + "/generation_config.json", "{,}").ok());
  const std::string text = folder.path() + "/text";
  ASSERT_TRUE(WriteFileAtomically(text, "It was a bright cold day in April.").ok());
  const std::string expected =
      "warning: " + folder.path() + "/generation_config.json: line 1, column 2: not valid JSON";
  for (const std::vector<std::string>& line :
       {std::vector<std::string>{"inspect", folder.path()},
        {"eval", "--model", folder.path(), "--text", text},
        {"generate", "--model", folder.path(), "--prompt", "x", "--max-tokens", "1"},
        {"compress", "--model", folder.path(), "--out", folder.path() + "-out",
         "--calibration-windows", "0"}}) {
    SCOPED_TRACE(line[0]);
    const Completed run = RunTool(line);
    EXPECT_EQ(run.exit_code, 0) << run.err;
    EXPECT_THAT(run.err, StartsWith(expected));
    EXPECT_EQ(run.err.find("warning: ", 1), std::string::npos) << run.err;
  }
  std::filesystem::remove_all(folder.path() + "-out");
}

TEST(CliTest, InspectsTheDenseModel) {
  const Completed run = RunTool({"inspect", SAMPLE_MODEL_DIR, "--json"});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const auto model = ParseOutput(run);
  EXPECT_EQ(model["codec"], "dense");
  EXPECT_EQ(model["bits_per_weight_linear"], 16.0);
  EXPECT_GE(model["bits_per_weight_file"], 16.0);
  EXPECT_EQ(model["sites"].size(), 4u * 5);
  // Hidden 256, intermediate 768, 4 heads and 2 key-value heads of 64, 5 layers, vocabulary 8192.
  const int64_t linear = 5 * (256 * (256 + 2 * 128) + 256 * 256 + 3 * 256 * 768);
  EXPECT_EQ(model["linear_weights"], linear);
  EXPECT_EQ(model["parameters"], linear + 8192 * 256 + (2 * 5 + 1) * 256);
  EXPECT_THAT(RunTool({"inspect", SAMPLE_MODEL_DIR}).out, HasSubstr("model.layers.4.mlp_output"));
}

TEST(CliTest, InspectSaysWhatAServerWillHold) {
  const Completed run = RunTool({"inspect", SAMPLE_MODEL_DIR, "--memory", "--sequences", "3",
                                 "--context", "100", "--device", "cpu", "--json"});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const auto memory = ParseOutput(run)["memory"];
  EXPECT_EQ(memory["device"], "cpu");
  EXPECT_EQ(memory["sequences"], 3);
  EXPECT_EQ(memory["context_tokens"], 100);
  EXPECT_EQ(memory["embedding_bytes"], 8192 * 256 * 2);
  // Keys and values of 5 layers, 2 heads of 64; 100 tokens are 7 blocks of 16.
  const int64_t elements_per_token = 2 * 5 * 2 * 64;
  const int64_t cache_elements = 3 * 7 * 16 * elements_per_token;
  EXPECT_EQ(memory["kv_cache_bytes"].get<int64_t>() % cache_elements, 0);
  EXPECT_GE(memory["kv_cache_bytes"].get<int64_t>(), cache_elements);
  EXPECT_EQ(memory["total_bytes"].get<int64_t>(),
            memory["weights_bytes"].get<int64_t>() + memory["embedding_bytes"].get<int64_t>() +
                memory["kv_cache_bytes"].get<int64_t>() + memory["workspace_bytes"].get<int64_t>());

  EXPECT_EQ(memory["kv_cache_type"], "fp16");
  // Bytes of a key or value of 64 numbers.
  for (const auto& [type, row_bytes] : std::vector<std::pair<std::string, int64_t>>{
           {"fp16", 128}, {"int8", 64 + 2}, {"int4", 32 + 2 * 2}, {"fp32", 256}}) {
    const Completed of_type =
        RunTool({"inspect", SAMPLE_MODEL_DIR, "--memory", "--sequences", "3", "--context", "100",
                 "--device", "cpu", "--kv-cache-type", type, "--json"});
    ASSERT_EQ(of_type.exit_code, 0) << of_type.err;
    EXPECT_EQ(ParseOutput(of_type)["memory"]["kv_cache_bytes"], cache_elements / 64 * row_bytes)
        << type;
  }
  EXPECT_EQ(
      RunTool({"inspect", SAMPLE_MODEL_DIR, "--memory", "--kv-cache-type", "float"}).exit_code, 2);

  const Completed beyond =
      RunTool({"inspect", SAMPLE_MODEL_DIR, "--memory", "--context", "1000000", "--device", "cpu"});
  EXPECT_EQ(beyond.exit_code, 1);
  EXPECT_THAT(beyond.err, HasSubstr("--context: expected at most the model's"));
  EXPECT_EQ(RunTool({"inspect", SAMPLE_MODEL_DIR, "--context", "100"}).exit_code, 2);
}

TEST(CliTest, InspectingSaysWhereTransformersTokenizesDifferently) {
  const TemporaryFolder folder;
  for (const char* name : {"config.json", "model.safetensors", "tokenizer.json"}) {
    std::filesystem::copy(absl::StrCat(SAMPLE_MODEL_DIR, "/", name), folder.path() + "/" + name);
  }
  EXPECT_THAT(ParseOutput(RunTool({"inspect", folder.path(), "--json"}))["tokenizer_notes"],
              IsEmpty());
  ASSERT_TRUE(WriteFileAtomically(folder.path() + "/tokenizer_config.json",
                                  R"({"tokenizer_class": "Qwen2Tokenizer"})")
                  .ok());
  EXPECT_THAT(RunTool({"inspect", folder.path()}).out, HasSubstr("transformers 5 makes a Qwen2"));
  EXPECT_EQ(ParseOutput(RunTool({"inspect", folder.path(), "--json"}))["tokenizer_notes"].size(),
            1u);
}

// What was not measured is neither a number nor "nan", in text, in JSON and on the page.
TEST(CliTest, CompressingOnTooLittleTextSaysSo) {
  const TemporaryFolder folder;
  ASSERT_TRUE(WriteFileAtomically(folder.path() + "/text", "\n").ok());
  const auto compress = [&](const std::vector<std::string>& options) {
    std::vector<std::string> line = {"compress",
                                     "--model",
                                     SAMPLE_MODEL_DIR,
                                     "--out",
                                     folder.path() + "/out",
                                     "--overwrite",
                                     "--bits",
                                     "1",
                                     "--report",
                                     folder.path() + "/page"};
    line.insert(line.end(), options.begin(), options.end());
    const Completed run = RunTool(line);
    EXPECT_EQ(run.exit_code, 0) << run.err;
    const std::string html = *ReadFile(folder.path() + "/page.html");
    for (const std::string& text : {run.out, html, *ReadFile(folder.path() + "/page.json")}) {
      EXPECT_THAT(text, Not(HasSubstr("0.0000")));
      EXPECT_THAT(text, Not(HasSubstr("nan")));
    }
    return run;
  };
  EXPECT_THAT(compress({"--calibration", folder.path() + "/text"}).err,
              ::testing::AllOf(HasSubstr("warning: "), HasSubstr("1 token"),
                               HasSubstr("65536 tokens in 128 windows")));
  compress({"--calibration", folder.path() + "/text", "--json"});
  EXPECT_THAT(compress({"--calibration-windows", "0"}).out,
              HasSubstr("output errors were not measured"));
}

TEST(CliTest, EvaluatesAsMuchAsItIsAskedTo) {
  const TemporaryFolder folder;
  const std::string file = folder.path() + "/text.txt";
  std::string text;
  for (int i = 0; i < 40; ++i) absl::StrAppend(&text, "It was the best of times, part ", i, ". ");
  ASSERT_TRUE(WriteFileAtomically(file, text).ok());
  const std::vector<std::string> line = {"eval",      "--model", SAMPLE_MODEL_DIR,
                                         "--text",    file,      "--json",
                                         "--context", "64",      "--max-tokens"};
  const auto evaluate = [&](const std::string& max_tokens) {
    std::vector<std::string> arguments = line;
    arguments.push_back(max_tokens);
    const Completed run = RunTool(arguments);
    EXPECT_EQ(run.exit_code, 0) << run.err;
    return ParseOutput(run);
  };
  const auto part = evaluate("100");
  EXPECT_EQ(part["tokens"], 99);  // all but the first
  EXPECT_NEAR(part["perplexity"].get<double>(), std::exp(part["nll"].get<double>()),
              1e-6 * part["perplexity"].get<double>());
  EXPECT_GT(part["tokens_per_second"], 0);
  EXPECT_GT(evaluate("0")["tokens"], 99);

  // A model agrees with itself.
  std::vector<std::string> arguments = line;
  arguments.insert(arguments.end(), {"100", "--reference", SAMPLE_MODEL_DIR});
  const Completed run = RunTool(arguments);
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const auto compared = ParseOutput(run);
  EXPECT_EQ(compared["agreement"], 1);
  EXPECT_EQ(compared["reference_perplexity"], part["perplexity"]);
  EXPECT_EQ(compared["accuracy"], compared["reference_accuracy"]);
  EXPECT_GT(compared["accuracy"], 0);

  // Not with one that makes other tokens of the text, which is said at once.
  arguments.back() = absl::StrCat(SAMPLE_MODEL_DIR, "/../smollm2-135m-sketch");
  const Completed refused = RunTool(arguments);
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_EQ(ParseOutput(refused)["error"]["code"], "INVALID_ARGUMENT");
  EXPECT_THAT(refused.err, HasSubstr("other tokens of the text"));
}

TEST(CliTest, GeneratesTheSameTextFromTheSameSeed) {
  const std::vector<std::string> line = {"generate", "--model",  SAMPLE_MODEL_DIR,
                                         "--prompt", "It was a", "--max-tokens",
                                         "24",       "--json",   "--seed"};
  const auto generate = [&](const std::string& seed) {
    std::vector<std::string> arguments = line;
    arguments.push_back(seed);
    const Completed run = RunTool(arguments);
    EXPECT_EQ(run.exit_code, 0) << run.err;
    return ParseOutput(run);
  };
  const auto first = generate("18446744073709551615");
  EXPECT_EQ(first["seed"], 18446744073709551615u);
  EXPECT_EQ(first["usage"]["completion_tokens"], first["token_ids"].size());
  EXPECT_EQ(
      first["usage"]["total_tokens"].get<int>(),
      first["usage"]["prompt_tokens"].get<int>() + first["usage"]["completion_tokens"].get<int>());
  for (const char* key :
       {"queue_seconds", "prefill_seconds", "decode_seconds", "time_to_first_token_seconds",
        "tokens_per_second", "steps", "mean_batch_size"}) {
    EXPECT_TRUE(first["timing"].contains(key)) << key;
  }
  const auto again = generate("18446744073709551615");
  EXPECT_EQ(again["text"], first["text"]);
  EXPECT_EQ(again["token_ids"], first["token_ids"]);
  EXPECT_NE(generate("1")["text"], first["text"]);
}

TEST(CliTest, StreamedTextIsTheText) {
  const TemporaryFolder folder;
  const std::string file = folder.path() + "/prompt.txt";
  ASSERT_TRUE(WriteFileAtomically(file, "The old man").ok());
  const std::vector<std::string> options = {"--model", SAMPLE_MODEL_DIR, "--max-tokens",
                                            "16",      "--seed",         "5"};
  const auto generate = [&](std::vector<std::string> arguments, const std::string& input = "") {
    arguments.insert(arguments.begin(), "generate");
    arguments.insert(arguments.end(), options.begin(), options.end());
    return RunTool(arguments, input);
  };
  const Completed json = generate({"--prompt", "The old man", "--json"});
  const std::string text = ParseOutput(json)["text"];
  const Completed streamed = generate({"--prompt", "The old man"});
  EXPECT_EQ(streamed.out, text + "\n");
  EXPECT_THAT(streamed.err, HasSubstr("tokens/s"));
  EXPECT_EQ(generate({"--prompt", "-"}, "The old man").out, text + "\n");
  EXPECT_EQ(generate({"--prompt-file", file}).out, text + "\n");
}

TEST(CliTest, StopStringsAreTakenLiterally) {
  const std::vector<std::string> line = {
      "generate", "--model", SAMPLE_MODEL_DIR, "--prompt", "It was a",
      "--seed",   "3",       "--max-tokens",   "12",       "--json"};
  const auto text = ParseOutput(RunTool(line))["text"].get<std::string>();
  std::vector<std::string> with_stops = line;
  for (const char* stop : {"[a,b]", "{}", "--json", "%%"}) {
    with_stops.push_back("--stop");
    with_stops.push_back(stop);
  }
  const Completed run = RunTool(with_stops);
  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_EQ(ParseOutput(run)["text"], text);

  const size_t space = text.find(' ', 1);
  ASSERT_NE(space, std::string::npos);
  std::vector<std::string> cut = line;
  cut.push_back("--stop");
  cut.push_back(text.substr(space, 3));
  const auto stopped = ParseOutput(RunTool(cut));
  EXPECT_EQ(stopped["finish_reason"], "stop");
  EXPECT_EQ(stopped["text"], text.substr(0, space));
}

TEST(CliTest, EndsAtASpecialTokenAndShowsItWhenAsked) {
  const auto generate = [](std::vector<std::string> options) {
    const std::vector<std::string> line = {
        "generate",     "--model", SAMPLE_MODEL_DIR, "--prompt",    "It was a", "--seed", "3",
        "--max-tokens", "12",      "--json",         "--ignore-eos"};
    options.insert(options.begin(), line.begin(), line.end());
    const Completed run = RunTool(options);
    EXPECT_EQ(run.exit_code, 0) << run.err;
    return ParseOutput(run);
  };
  const auto ids = generate({})["token_ids"].get<std::vector<int32_t>>();
  ASSERT_EQ(ids.size(), 12u);
  size_t end = 3;
  while (std::find(ids.begin(), ids.begin() + static_cast<ptrdiff_t>(end), ids[end]) !=
         ids.begin() + static_cast<ptrdiff_t>(end)) {
    ASSERT_LT(++end, ids.size());
  }
  const auto stopped =
      generate({"--stop-token-id", "8191", "--stop-token-id", absl::StrCat(ids[end])});
  EXPECT_EQ(stopped["finish_reason"], "stop");
  EXPECT_EQ(stopped["token_ids"].get<std::vector<int32_t>>(),
            std::vector<int32_t>(ids.begin(), ids.begin() + static_cast<ptrdiff_t>(end) + 1));

  // Token 0 is <|endoftext|>.
  const auto shown = generate({"--stop-token-id", "0", "--include-stop", "--no-skip-special-tokens",
                               "--logit-bias", "0=100"});
  EXPECT_EQ(shown["text"], "<|endoftext|>");
  const auto by_text = generate({"--stop", "<|endoftext|>", "--logit-bias", "0=100"});
  EXPECT_EQ(by_text["text"], "");
  EXPECT_EQ(by_text["stop_string"], "<|endoftext|>");
  EXPECT_EQ(by_text["token_ids"].size(), 1u);
}

TEST(CliTest, SpellingsOfSpecialTokensCanStayText) {
  const std::string text = "Her note said <|endoftext|> and no more";
  const auto tokenize = [&](std::vector<std::string> options) {
    options.insert(options.begin(),
                   {"tokenize", "--model", SAMPLE_MODEL_DIR, "--text", text, "--json"});
    return ParseOutput(RunTool(options))["token_ids"].get<std::vector<int32_t>>();
  };
  // transformers 5.24, split_special_tokens.
  EXPECT_EQ(tokenize({"--split-special-tokens"}),
            (std::vector<int32_t>{3546, 2765, 413, 221, 28, 92, 2481, 79, 704, 69, 1186, 92, 30,
                                  279, 444, 521}));
  const size_t num_parsed = tokenize({}).size();
  EXPECT_LT(num_parsed, 16u);
  const auto prompt_tokens = [&](std::vector<std::string> options) {
    options.insert(options.begin(), {"generate", "--model", SAMPLE_MODEL_DIR, "--prompt", text,
                                     "--max-tokens", "1", "--json"});
    return ParseOutput(RunTool(options))["usage"]["prompt_tokens"].get<size_t>();
  };
  EXPECT_EQ(prompt_tokens({"--split-special-tokens"}), 16u);
  EXPECT_EQ(prompt_tokens({}), num_parsed);
}

TEST(CliTest, TextThatIsNotUtf8IsRefusedAlikeHereAndForAServer) {
  for (const std::vector<std::string>& place : std::vector<std::vector<std::string>>{
           {"--model", SAMPLE_MODEL_DIR}, {"--target", "unix:/nonexistent/socket"}}) {
    std::vector<std::string> line = {"generate", "--prompt", "\xff\xfe"};
    line.insert(line.end(), place.begin(), place.end());
    const Completed run = RunTool(line);
    EXPECT_EQ(run.exit_code, 1);
    EXPECT_THAT(run.err, HasSubstr("text is not UTF-8 at byte 0 [INVALID_ARGUMENT]\n"));
    EXPECT_THAT(run.err, Not(HasSubstr("libprotobuf")));
  }
}

TEST(CliTest, ReadsPromptsFromPipes) {
  const std::string generate = absl::StrCat(ULTRASKETCH_BINARY, " generate --model ",
                                            SAMPLE_MODEL_DIR, " --max-tokens 4 --temperature 0 ");
  const auto text_of = [&](const std::string& options) {
    const Completed run = RunProgram({"/bin/bash", "-c", generate + options}, "It was a dark");
    EXPECT_EQ(run.exit_code, 0) << run.err;
    return run.out;
  };
  const std::string expected = text_of("--prompt 'It was a dark'");
  EXPECT_THAT(expected, Not(IsEmpty()));
  EXPECT_EQ(text_of("--prompt-file <(printf 'It was a dark')"), expected);
  EXPECT_EQ(text_of("--prompt-file /dev/stdin"), expected);
  const Completed folder =
      RunTool({"generate", "--model", SAMPLE_MODEL_DIR, "--prompt-file", SAMPLE_MODEL_DIR});
  EXPECT_EQ(folder.exit_code, 1);
  EXPECT_THAT(folder.err, HasSubstr("expected a file or a pipe, found a folder"));
  const Completed messages =
      RunProgram({"/bin/bash", "-c",
                  generate + "--messages <(echo '[{\"role\": \"user\", \"name\": \"x\"}]')"});
  EXPECT_THAT(messages.err, HasSubstr("expected role and content alone, found \"name\""));
}

TEST(CliTest, BadSamplingOptionsAreNamed) {
  for (const auto& [option, value, field] :
       std::vector<std::tuple<const char*, const char*, const char*>>{
           {"--top-p", "1.5", "top_p"},
           {"--temperature", "-1", "temperature"},
           {"--temperature", "nan", "temperature"},
           {"--max-tokens", "0", "max_tokens"},
           {"--stop", "", "stop"}}) {
    const Completed run =
        RunTool({"generate", "--model", SAMPLE_MODEL_DIR, "--prompt", "x", option, value});
    EXPECT_EQ(run.exit_code, 1);
    EXPECT_THAT(run.err, HasSubstr(field));
  }
}

TEST(CliTest, AReaderThatGoesAwayIsNoError) {
  const std::string command =
      absl::StrCat(ULTRASKETCH_BINARY, " generate --model ", SAMPLE_MODEL_DIR,
                   " --prompt 'It was' --ignore-eos --max-tokens 500 --seed 1 | head -c 1; "
                   "echo \" ${PIPESTATUS[0]}\"");
  const Completed run = RunProgram({"/bin/bash", "-c", command});
  EXPECT_THAT(run.out, ::testing::EndsWith(" 1\n"));
  EXPECT_THAT(run.err, IsEmpty());
}

TEST(CliTest, InterruptedCompressionLeavesNothing) {
  const TemporaryFolder folder;
  // Minutes of work.
  Process compress({ULTRASKETCH_BINARY, "compress", "--model", SAMPLE_MODEL_DIR, "--out",
                    folder.path() + "/out", "--calibration-windows", "4096", "--json"});
  ASSERT_TRUE(compress.WaitFor(
      [](const std::string&, const std::string& err) {
        return err.find("needs up to") != err.npos;  // said when the work begins
      },
      absl::Seconds(60)))
      << compress.err();
  compress.Signal(SIGINT);
  EXPECT_EQ(compress.Wait(absl::Seconds(30)), 1);
  EXPECT_THAT(compress.err(), HasSubstr("interrupted"));
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(CliTest, InterruptedMeasurementLeavesOnlyWhatItHasMeasured) {
  const TemporaryFolder folder;
  Process bench({ULTRASKETCH_BINARY, "bench", "quality", "--model", SAMPLE_MODEL_DIR, "--text",
                 absl::StrCat(SAMPLE_MODEL_DIR, "/../../demo/sample.txt"), "--max-tokens", "300",
                 "--landmarks", "4", "--calibration-windows", "4096", "--work-dir", folder.path(),
                 "--out", folder.path() + "/out.json", "--json"});
  const std::string out = folder.path() + "/out.json";
  // The dense model and the landmark are measured soon.
  for (int i = 0; i < 300 && !std::filesystem::exists(out); ++i) {
    absl::SleepFor(absl::Milliseconds(100));
  }
  bench.Signal(SIGINT);
  EXPECT_EQ(bench.Wait(absl::Seconds(30)), 1);
  EXPECT_THAT(bench.err(), HasSubstr("interrupted"));
  const auto measured = ReadFile(out);
  ASSERT_TRUE(measured.ok()) << measured.status();
  EXPECT_GE(nlohmann::json::parse(*measured).at("points").size(), 1u);
  std::filesystem::remove(out);
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(CliTest, MeasuresQualityAtSeveralRates) {
  const TemporaryFolder folder;
  const std::string out = folder.path() + "/out.json";
  const std::string text = absl::StrCat(SAMPLE_MODEL_DIR, "/../../demo/sample.txt");
  const auto run = [&](const std::vector<std::string>& options) {
    std::vector<std::string> arguments = {"bench",
                                          "quality",
                                          "--model",
                                          SAMPLE_MODEL_DIR,
                                          "--text",
                                          text,
                                          "--max-tokens",
                                          "300",
                                          "--context",
                                          "100",
                                          "--calibration-windows",
                                          "0",
                                          "--work-dir",
                                          folder.path(),
                                          "--json"};
    arguments.insert(arguments.end(), options.begin(), options.end());
    return RunTool(arguments);
  };
  const Completed completed = run({"--landmarks", "4,8", "--bits", "0.5,1", "--out", out});
  ASSERT_EQ(completed.exit_code, 0) << completed.err;
  const auto study = ParseOutput(completed);
  EXPECT_EQ(nlohmann::json::parse(*ReadFile(out)), study);
  ASSERT_EQ(study["points"].size(), 5u);
  const auto evaluated =
      ParseOutput(RunTool({"eval", "--model", SAMPLE_MODEL_DIR, "--text", text, "--max-tokens",
                           "300", "--context", "100", "--json"}));
  EXPECT_EQ(study["points"][0]["codec"], "dense");
  EXPECT_EQ(study["points"][0]["perplexity"], evaluated["perplexity"]);
  EXPECT_EQ(study["points"][2]["codec"], "int8");
  EXPECT_NEAR(study["points"][2]["ratio_to_dense"].get<double>(), 1, 0.01);
  EXPECT_EQ(study["points"][3]["codec"], "fold");
  EXPECT_EQ(study["points"][3]["target_bits"], 0.5);
  EXPECT_GT(study["points"][3]["compress_seconds"], 0);

  EXPECT_THAT(run({"--codecs", "zip"}).err, HasSubstr("found \"zip\""));
  EXPECT_THAT(run({"--out", folder.path() + "/none/out.json"}).err, HasSubstr("none/out.json"));
}

}  // namespace
}  // namespace ultrasketch
