// Stop strings in streamed text.
#ifndef ULTRASKETCH_ENGINE_SERVING_ENGINE_LOOP_STOP_MATCHER_H_
#define ULTRASKETCH_ENGINE_SERVING_ENGINE_LOOP_STOP_MATCHER_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace ultrasketch {

// Finds the first stop string to be complete in a text that arrives in pieces; of several that end
// at the same byte, the longest. How the text is cut into pieces makes no difference. Text that may
// be the beginning of a stop string is held back until it is known not to be. Constant time per
// byte and stop string (Knuth, Morris, Pratt). Not thread-safe.
//
// The text comes in two versions: as it is shown, and spelled out with tokens that are not shown,
// such as special ones. A stop string is found in either. In the second it begins and ends outside
// of hidden tokens: "end" is not found in a hidden "<|endoftext|>".
class StopMatcher {
 public:
  // `stop` strings are not empty, and UTF-8: then what is returned is cut between characters. With
  // `include_stop_in_output` a match is returned too, and no more is held back than that needs.
  StopMatcher(const std::vector<std::string>& stop, bool include_stop_in_output);

  // The text that can be shown now that `text` has arrived, in both versions. After a match: the
  // text up to the stop string, or its end; not to be called again.
  std::string Add(std::string_view text) { return Add(text, text, 0); }

  // The same where the versions differ. The last `num_hidden` bytes of `spelled` are a token that
  // is not shown. `shown` may lag behind.
  std::string Add(std::string_view shown, std::string_view spelled, size_t num_hidden);

  // As Add, but nothing that arrives counts as part of a stop string. `text` is what is shown.
  std::string AddUnmatched(std::string_view text);

  // What is left to show of a text that has ended; once. `rest` is what of it has not been given to
  // Add: after a match the lag of the shown text, to be cut at the stop string.
  std::string Finish(std::string_view rest = {});

  bool matched() const { return matched_index_ >= 0; }
  int matched_index() const { return matched_index_; }  // into `stop`; -1: none

 private:
  struct Pattern {
    std::string text;
    std::vector<uint32_t> border;  // of each prefix: length of its longest proper border
    // The longest prefix that the text so far ends with, in each version.
    uint32_t shown_prefix = 0;
    uint32_t spelled_prefix = 0;
  };
  // The longest pattern that is complete, and the byte after it in the piece.
  struct Match {
    int index = -1;
    size_t end = 0;
  };

  Match MatchShown(std::string_view text);
  Match MatchSpelled(std::string_view text, size_t num_hidden);
  // What the last `length` bytes of the spelled text are.
  std::string_view Tail(size_t length) const;
  // The bytes among them that are shown; with include_stop_in_output those from the first hidden
  // one on, as what is before it is shown whatever follows.
  size_t NumToHold(size_t length) const;
  void TakeSpelledMatch(const Match& match, size_t num_shown_after);

  std::vector<Pattern> patterns_;
  size_t longest_ = 0;
  bool include_stop_in_output_;
  std::string held_;
  std::string tail_;  // a mark for each byte of the spelled text, of the longest pattern's at least
  int matched_index_ = -1;
  // After a match in the spelled text: what Finish takes off the shown text, and puts in its place.
  bool matched_spelled_ = false;
  size_t num_cut_ = 0;
  std::string ending_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_SERVING_ENGINE_LOOP_STOP_MATCHER_H_
