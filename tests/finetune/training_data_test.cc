#include "engine/finetune/training_data.h"

#include <lzma.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/base/file.h"
#include "engine/compress/token_windows.h"
#include "engine/finetune/training_texts.h"
#include "engine/format/tokenizer/tokenizer.h"
#include "tests/base/temporary_folder.h"

namespace ultrasketch {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::SizeIs;

constexpr char kTokenizer[] = SAMPLE_MODEL_DIR "/tokenizer.json";

std::string SomeText(int num_lines) {
  std::string text;
  for (int line = 0; line < num_lines; ++line) {
    absl::StrAppend(&text, "It was line ", line, " of a dark and stormy night.\n",
                    line % 7 == 0 ? "\n  “Naïve”, said 日本語.\n" : "");
  }
  return text;
}

std::string Compressed(const std::string& text) {
  std::string out(lzma_stream_buffer_bound(text.size()), '\0');
  size_t size = 0;
  EXPECT_EQ(lzma_easy_buffer_encode(6, LZMA_CHECK_CRC32, nullptr,
                                    reinterpret_cast<const uint8_t*>(text.data()), text.size(),
                                    reinterpret_cast<uint8_t*>(out.data()), &size, out.size()),
            LZMA_OK);
  out.resize(size);
  return out;
}

class TokenCacheTest : public testing::Test {
 public:
  absl::StatusOr<std::vector<int64_t>> Tokens(const std::vector<std::string>& files,
                                              int num_threads = 1) {
    ThreadPool pool(num_threads);
    num_bytes_ = 0;
    auto cache = TokenCache::Open({.text_files = files,
                                   .tokenizer_path = kTokenizer,
                                   .cache_path = folder_.File("cache/tokens"),
                                   .progress = [this](int64_t bytes) { num_bytes_ = bytes; },
                                   .cancelled = cancelled_},
                                  pool);
    if (!cache.ok()) return cache.status();
    std::vector<int64_t> tokens(static_cast<size_t>((*cache)->size()));
    (*cache)->Copy(0, (*cache)->size(), tokens.data());
    key_ = (*cache)->key();
    return tokens;
  }

  static std::vector<int64_t> Expected(const std::string& text) {
    const auto tokenizer = Tokenizer::Load(kTokenizer);
    const auto ids = (*tokenizer)->Encode(text);
    EXPECT_TRUE(ids.ok());
    return {ids->begin(), ids->end()};
  }

  TemporaryFolder folder_;
  int64_t num_bytes_ = 0;  // tokenized by the last call
  std::string key_;
  const std::atomic<bool>* cancelled_ = nullptr;
};

TEST_F(TokenCacheTest, IsMadeOnceAndReused) {
  const std::string file = folder_.Write("text", SomeText(100));
  const auto made = Tokens({file});
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ(num_bytes_, static_cast<int64_t>(SomeText(100).size()));
  EXPECT_EQ(*made, Expected(SomeText(100)));
  const auto reused = Tokens({file});
  ASSERT_TRUE(reused.ok()) << reused.status();
  EXPECT_EQ(num_bytes_, 0);
  EXPECT_EQ(*reused, *made);
}

TEST_F(TokenCacheTest, IsMadeAnewForOtherTexts) {
  const std::string file = folder_.Write("text", SomeText(100));
  ASSERT_TRUE(Tokens({file}).ok());
  const std::string key = key_;
  folder_.Write("text", SomeText(101));
  const auto changed = Tokens({file});
  ASSERT_TRUE(changed.ok()) << changed.status();
  EXPECT_EQ(*changed, Expected(SomeText(101)));
  EXPECT_NE(key_, key);
  const std::string other = folder_.Write("other", "More.");
  const auto both = Tokens({file, other});
  ASSERT_TRUE(both.ok()) << both.status();
  std::vector<int64_t> expected = *changed;
  for (const int64_t token : Expected("More.")) expected.push_back(token);
  EXPECT_EQ(*both, expected);
}

TEST_F(TokenCacheTest, TakesCompressedTextAsPlainText) {
  const std::string plain = folder_.Write("text", SomeText(200));
  const std::string archive = folder_.Write("text.xz", Compressed(SomeText(200)));
  const auto from_plain = Tokens({plain});
  const auto from_archive = Tokens({archive});
  ASSERT_TRUE(from_plain.ok() && from_archive.ok());
  EXPECT_EQ(*from_plain, *from_archive);
}

TEST_F(TokenCacheTest, DoesNotDependOnThreadsAndCutsNoToken) {
  const std::string text = SomeText(60000);  // several pieces of a mebibyte
  ASSERT_GT(text.size(), size_t{5} << 19);
  const std::string file = folder_.Write("text", text);
  const auto one = Tokens({file}, 1);
  ASSERT_TRUE(one.ok()) << one.status();
  std::filesystem::remove(folder_.File("cache/tokens"));
  const auto three = Tokens({file}, 3);
  ASSERT_TRUE(three.ok()) << three.status();
  EXPECT_TRUE(*one == *three);
  EXPECT_TRUE(*one == Expected(text));
}

TEST_F(TokenCacheTest, DetectsADamagedCache) {
  const std::string file = folder_.Write("text", SomeText(100));
  ASSERT_TRUE(Tokens({file}).ok());
  const std::string path = folder_.File("cache/tokens");
  std::string bytes = *ReadFile(path);
  bytes[bytes.size() - 5] = static_cast<char>(bytes[bytes.size() - 5] ^ 1);
  folder_.Write("cache/tokens", bytes);
  const absl::Status damaged = Tokens({file}).status();
  EXPECT_EQ(damaged.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(damaged.message()), HasSubstr(path));
  folder_.Write("cache/tokens", bytes.substr(0, bytes.size() / 2));
  EXPECT_EQ(Tokens({file}).status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(TokenCacheTest, NeverReplacesAnotherFile) {
  const std::string file = folder_.Write("text", SomeText(10));
  std::filesystem::create_directory(folder_.File("cache"));
  std::filesystem::copy(SAMPLE_MODEL_DIR "/model.safetensors", folder_.File("cache/tokens"));
  EXPECT_EQ(Tokens({file}).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(std::filesystem::file_size(folder_.File("cache/tokens")),
            std::filesystem::file_size(SAMPLE_MODEL_DIR "/model.safetensors"));
}

TEST_F(TokenCacheTest, NamesTheFileThatIsNoText) {
  const std::string good = folder_.Write("good", SomeText(10));
  const std::string bad = folder_.Write("bad", "abc\xff\xfe");
  for (const std::string& path : {bad, folder_.File("absent")}) {
    const absl::Status status = Tokens({good, path}).status();
    EXPECT_FALSE(status.ok());
    EXPECT_THAT(std::string(status.message()), HasSubstr(path));
  }
}

TEST_F(TokenCacheTest, LeavesNothingWhenItIsCancelled) {
  const std::atomic<bool> cancelled = true;
  cancelled_ = &cancelled;
  const std::string file = folder_.Write("text", SomeText(10));
  EXPECT_EQ(Tokens({file}).status().code(), absl::StatusCode::kCancelled);
  EXPECT_FALSE(std::filesystem::exists(folder_.File("cache/tokens")));
}

TEST(WindowOrderTest, VisitsEveryWindowOnceInAnEpochInAnOrderOfItsOwn) {
  auto order = WindowOrder::Make(1000, 10, 5);
  ASSERT_TRUE(order.ok()) << order.status();
  const int64_t epoch = order->windows_per_epoch();
  EXPECT_EQ(epoch, 99);
  const std::vector<int64_t> first = order->Starts(0, epoch);
  const std::vector<int64_t> second = order->Starts(epoch, epoch);
  for (const std::vector<int64_t>& starts : {first, second}) {
    EXPECT_EQ(std::set<int64_t>(starts.begin(), starts.end()).size(), starts.size());
    for (const int64_t start : starts) {
      EXPECT_EQ(start % 10, starts[0] % 10);
      EXPECT_GE(start, 0);
      EXPECT_LE(start + 10, 1000);
    }
    EXPECT_FALSE(std::is_sorted(starts.begin(), starts.end()));
  }
  EXPECT_NE(first, second);
}

TEST(WindowOrderTest, DependsOnSeedAndPlaceAlone) {
  auto order = WindowOrder::Make(1000, 10, 5);
  const std::vector<int64_t> all = order->Starts(0, 300);
  auto again = WindowOrder::Make(1000, 10, 5);
  EXPECT_EQ(again->Starts(150, 100), std::vector<int64_t>(all.begin() + 150, all.begin() + 250));
  EXPECT_EQ(again->Starts(0, 300), all);
  EXPECT_NE(WindowOrder::Make(1000, 10, 6)->Starts(0, 300), all);
}

TEST(WindowOrderTest, NeedsTwoWindows) {
  EXPECT_TRUE(WindowOrder::Make(20, 10, 0).ok());
  EXPECT_EQ(WindowOrder::Make(19, 10, 0).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(TrainingTextsTest, WindowsAndTextTakeTurnsByTheirShares) {
  const TemporaryFolder folder;
  std::vector<int32_t> tokens;
  for (int32_t window = 0; window < 30; ++window) tokens.insert(tokens.end(), 8, 8000 + window);
  const std::string windows = folder.File("windows.safetensors");
  ASSERT_TRUE(WriteTokenWindows(windows, kTokenizer, tokens, 8).ok());
  TrainingTextsOptions options = {.cache = {.text_files = {folder.Write("text", SomeText(200))},
                                            .tokenizer_path = kTokenizer,
                                            .cache_path = folder.File("tokens"),
                                            .progress = nullptr},
                                  .window_files = {windows},
                                  .windows_share = 0.75,
                                  .eval_file = "",
                                  .eval_max_tokens = 100,
                                  .window_tokens = 8,
                                  .vocab_size = 8192,
                                  .seed = 1};
  ThreadPool pool(1);
  const auto both = TrainingTexts::Open(options, pool);
  ASSERT_TRUE(both.ok()) << both.status();
  std::vector<int64_t> dealt(40 * 8);
  (*both)->CopyWindows(0, 40, dealt.data());
  std::vector<int> seen(30);
  for (size_t i = 0; i < 40; ++i) {
    const int64_t id = dealt[i * 8];
    EXPECT_EQ(id >= 8000, i % 4 != 0) << i;
    if (id < 8000) continue;
    EXPECT_EQ(std::count(dealt.begin() + i * 8, dealt.begin() + i * 8 + 8, id), 8);
    ++seen[static_cast<size_t>(id - 8000)];
  }
  EXPECT_THAT(seen, Each(1));  // an epoch of windows
  // The same windows whatever the calls.
  std::vector<int64_t> some(3 * 8);
  (*both)->CopyWindows(17, 3, some.data());
  EXPECT_TRUE(std::equal(some.begin(), some.end(), dealt.begin() + 17 * 8));

  // Windows alone: some of them are held out.
  options.cache.text_files.clear();
  const auto alone = TrainingTexts::Open(options, pool);
  ASSERT_TRUE(alone.ok()) << alone.status();
  EXPECT_EQ((*alone)->num_held_out(), 8);
  EXPECT_THAT((*alone)->eval_tokens(), AllOf(SizeIs(8), Each(8029)));
  EXPECT_NE((*alone)->key(), (*both)->key());

  options.window_tokens = 16;
  EXPECT_THAT(std::string(TrainingTexts::Open(options, pool).status().message()),
              AllOf(HasSubstr(windows), HasSubstr("--context")));
  options.window_tokens = 8;
  options.vocab_size = 8010;
  EXPECT_EQ(TrainingTexts::Open(options, pool).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(TrainingTextsTest, HoldsTheEndOutWhereThereIsNoTextToEvaluateOn) {
  const TemporaryFolder folder;
  const std::string file = folder.Write("text", SomeText(500));
  TrainingTextsOptions options = {.cache = {.text_files = {file},
                                            .tokenizer_path = kTokenizer,
                                            .cache_path = folder.File("tokens"),
                                            .progress = nullptr},
                                  .window_files = {},
                                  .eval_file = "",
                                  .eval_max_tokens = 100,
                                  .window_tokens = 20,
                                  .vocab_size = 8192,
                                  .seed = 1};
  ThreadPool pool(1);
  const auto texts = TrainingTexts::Open(options, pool);
  ASSERT_TRUE(texts.ok()) << texts.status();
  EXPECT_EQ((*texts)->num_held_out(), 100);
  EXPECT_EQ((*texts)->eval_tokens().size(), 100u);

  options.eval_file = folder.Write("eval.xz", Compressed("It was a dark night."));
  const auto with_file = TrainingTexts::Open(options, pool);
  ASSERT_TRUE(with_file.ok()) << with_file.status();
  EXPECT_EQ((*with_file)->num_held_out(), 0);
  EXPECT_LT((*with_file)->eval_tokens().size(), 20u);
  std::vector<int64_t> window(20);
  (*with_file)->CopyWindows(3, 1, window.data());
  EXPECT_LT(*std::max_element(window.begin(), window.end()), 8192);

  options.vocab_size = 100;
  EXPECT_EQ(TrainingTexts::Open(options, pool).status().code(), absl::StatusCode::kInvalidArgument);
  options.vocab_size = 8192;
  options.eval_file = folder.Write("short", "");
  EXPECT_THAT(std::string(TrainingTexts::Open(options, pool).status().message()),
              HasSubstr(options.eval_file));
}

}  // namespace
}  // namespace ultrasketch
