// What the tests of the engine loop share.
#ifndef ULTRASKETCH_TESTS_SERVING_ENGINE_LOOP_TESTING_H_
#define ULTRASKETCH_TESTS_SERVING_ENGINE_LOOP_TESTING_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"

#include "engine/base/mutex.h"
#include "engine/format/tokenizer/tokenizer.h"
#include "engine/serving/engine_loop/engine_loop.h"

namespace ultrasketch {

// Ids of ByteTokenizer: bytes are their own ids.
inline constexpr int32_t kEndToken = 256;  // special: "<|end|>"
inline constexpr int32_t kFirstPieceToken = 257;

// A byte-level tokenizer: ids 0 to 255 are the bytes, kEndToken is special, and the ids from
// kFirstPieceToken on are `pieces` of printable ASCII, which no text becomes. With
// `has_template` kEndToken is put in front of every text.
std::shared_ptr<const Tokenizer> ByteTokenizer(const std::vector<std::string>& pieces = {},
                                               bool has_template = false);

std::vector<int32_t> Bytes(std::string_view text);

// Keeps everything that arrives. Thread-safe. Fails the test when a completion has an event after
// its end.
class RecordingSink final : public GenerationSink {
 public:
  struct Record {
    std::string text;
    std::vector<int32_t> token_ids;
    std::vector<SampledToken> logprobs;
    int num_deltas = 0;
    std::optional<GenerationResult> result;
  };

  explicit RecordingSink(int num_completions = 1);

  void OnDelta(GenerationDelta delta) override;
  void OnFinish(GenerationResult result) override;

  // Called on the delivery thread, outside the lock.
  std::function<void(const GenerationDelta&)> on_delta;
  std::function<void(const GenerationResult&)> on_finish;

  // Waits until a completion has this many tokens, or has ended.
  void WaitForTokens(size_t num_tokens, int completion = 0);
  // Waits until all have ended and returns one.
  Record Wait(int completion = 0);
  bool finished() const;

 private:
  mutable Mutex mutex_;
  std::vector<Record> records_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_TESTS_SERVING_ENGINE_LOOP_TESTING_H_
