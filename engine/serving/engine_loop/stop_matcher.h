// Stop strings in streamed text.
#ifndef ULTRASKETCH_ENGINE_SERVING_ENGINE_LOOP_STOP_MATCHER_H_
#define ULTRASKETCH_ENGINE_SERVING_ENGINE_LOOP_STOP_MATCHER_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace ultrasketch {

// Finds the first stop string to be complete in a text that arrives in pieces; of several that end
// at the same byte, the longest. How the text is cut into pieces makes no difference. Text that may
// be the beginning of a stop string is held back until it is known not to be. Constant time per
// byte and stop string (Knuth, Morris, Pratt). Not thread-safe.
class StopMatcher {
 public:
  // `stop` strings are not empty, and UTF-8: then what is returned is cut between characters. With
  // `include_stop_in_output` a match is returned too, and nothing is held back.
  StopMatcher(const std::vector<std::string>& stop, bool include_stop_in_output);

  // The text that can be shown now that `text` has arrived. After a match: the text up to the stop
  // string, or its end; not to be called again.
  std::string Add(std::string_view text);

  // As Add, but nothing in `text` counts as part of a stop string.
  std::string AddUnmatched(std::string_view text);

  // What is held back, when the text has ended without a match.
  std::string Finish();

  bool matched() const { return matched_index_ >= 0; }
  int matched_index() const { return matched_index_; }  // into `stop`; -1: none

 private:
  struct Pattern {
    std::string text;
    std::vector<uint32_t> border;  // of each prefix: length of its longest proper border
    uint32_t num_matched = 0;      // longest prefix that the text so far ends with
  };

  std::vector<Pattern> patterns_;
  bool include_stop_in_output_;
  std::string held_;
  int matched_index_ = -1;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_SERVING_ENGINE_LOOP_STOP_MATCHER_H_
