// Bearer tokens from a file, one a line:
//
//   # comments and empty lines are skipped
//   3f1c9a7e5b2d4860...                        a user
//   ci:user:9b0e7c...                          a user, named in the log
//   operator:admin:c41d...                     may load and unload models, too
//
// A token is 16 to 512 characters of RFC 6750's alphabet: letters, digits and -._~+/=
#ifndef ULTRASKETCH_SERVER_TOKEN_FILE_H_
#define ULTRASKETCH_SERVER_TOKEN_FILE_H_

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"

#include "server/watched_files.h"

namespace ultrasketch {

enum class Role : uint8_t { kUser, kAdmin };

struct TokenOwner {
  std::string name;  // "": the file gives none
  Role role = Role::kUser;

  bool operator==(const TokenOwner&) const = default;
};

// The tokens of one reading of the file, as SHA-256 digests. Immutable and thread-safe.
class TokenTable {
 public:
  // INVALID_ARGUMENT, with the line's number and never its text, for a line that is none of the
  // above, for a token that is there twice and when there is no token at all.
  static absl::StatusOr<TokenTable> Parse(std::string_view text);

  // Whose the token is. Takes the same time for every token of a length, as far as the table is
  // concerned: each digest is compared in full.
  std::optional<TokenOwner> Find(std::string_view token) const;

  size_t size() const { return entries_.size(); }

  bool operator==(const TokenTable&) const = default;

 private:
  using Digest = std::array<uint8_t, 32>;
  static Digest DigestOf(std::string_view token);

  struct Entry {
    Digest digest;
    TokenOwner owner;

    bool operator==(const Entry&) const = default;
  };
  std::vector<Entry> entries_;
};

// The file as it is now. Thread-safe.
class TokenFile {
 public:
  // Reads the file. Errors are TokenTable's and those of reading, with the path.
  static absl::StatusOr<std::unique_ptr<TokenFile>> Open(
      const std::string& path, absl::Duration look_interval = absl::Seconds(1));

  // As TokenTable's; reads the file again when it has changed, which is looked at once a second.
  // One that cannot be read or understood is logged (tokens_not_reloaded), and the tokens from
  // before stay.
  std::optional<TokenOwner> Find(std::string_view token) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  TokenFile(std::string path, absl::Duration look_interval);
  absl::StatusOr<std::shared_ptr<const TokenTable>> Read() const;

  const std::string path_;
  absl::Mutex mutex_;
  WatchedFiles watched_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<const TokenTable> table_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_TOKEN_FILE_H_
