#include "server/token_file.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include <openssl/crypto.h>
#include <openssl/sha.h>

#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/base/strings.h"
#include "server/log.h"

namespace ultrasketch {
namespace {

constexpr size_t kMinTokenBytes = 16;
constexpr size_t kMaxTokenBytes = 512;
constexpr size_t kMaxNameBytes = 64;
constexpr int64_t kMaxFileBytes = int64_t{1} << 20;

bool IsToken(absl::string_view text) {
  return text.size() >= kMinTokenBytes && text.size() <= kMaxTokenBytes &&
         std::all_of(text.begin(), text.end(), [](char c) {
           return absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
                  absl::string_view("-._~+/=").find(c) != absl::string_view::npos;
         });
}

bool IsName(absl::string_view text) {
  return !text.empty() && text.size() <= kMaxNameBytes &&
         std::all_of(text.begin(), text.end(),
                     [](char c) { return c > ' ' && c <= '~' && c != '"' && c != '\\'; });
}

}  // namespace

TokenTable::Digest TokenTable::DigestOf(std::string_view token) {
  Digest digest;
  SHA256(reinterpret_cast<const unsigned char*>(token.data()), token.size(), digest.data());
  return digest;
}

absl::StatusOr<TokenTable> TokenTable::Parse(std::string_view text) {
  TokenTable table;
  int line_number = 0;
  for (absl::string_view line : absl::StrSplit(A(text), '\n')) {
    ++line_number;
    line = absl::StripAsciiWhitespace(line);
    if (line.empty() || line.front() == '#') continue;
    const auto error = [line_number](absl::string_view what) {
      return absl::InvalidArgumentError(absl::StrCat("line ", line_number, ": ", what));
    };
    const std::vector<absl::string_view> fields = absl::StrSplit(line, ':');
    TokenOwner owner;
    if (fields.size() == 3) {
      if (!IsName(fields[0])) {
        return error("expected a name of 1 to 64 printable characters before the first colon");
      }
      owner.name = std::string(fields[0]);
      if (fields[1] != "user" && fields[1] != "admin") {
        return error("expected the role user or admin between the colons");
      }
      owner.role = fields[1] == "admin" ? Role::kAdmin : Role::kUser;
    } else if (fields.size() != 1) {
      return error("expected TOKEN or NAME:ROLE:TOKEN");
    }
    if (!IsToken(fields.back())) {
      return error(
          "expected a token of 16 to 512 letters, digits and -._~+/= (openssl rand -hex 32 makes "
          "one)");
    }
    const Digest digest = DigestOf(S(fields.back()));
    for (const Entry& entry : table.entries_) {
      if (entry.digest == digest) return error("this token is there already");
    }
    table.entries_.push_back({digest, std::move(owner)});
  }
  if (table.entries_.empty()) return absl::InvalidArgumentError("expected a token, found none");
  return table;
}

std::optional<TokenOwner> TokenTable::Find(std::string_view token) const {
  const Digest digest = DigestOf(token);
  const Entry* found = nullptr;
  for (const Entry& entry : entries_) {
    if (CRYPTO_memcmp(digest.data(), entry.digest.data(), digest.size()) == 0) found = &entry;
  }
  if (found == nullptr) return std::nullopt;
  return found->owner;
}

TokenFile::TokenFile(std::string path, absl::Duration look_interval)
    : path_(std::move(path)), watched_({path_}, look_interval) {}

absl::StatusOr<std::unique_ptr<TokenFile>> TokenFile::Open(const std::string& path,
                                                           absl::Duration look_interval) {
  std::unique_ptr<TokenFile> file(new TokenFile(path, look_interval));
  absl::MutexLock lock(&file->mutex_);
  file->watched_.HaveChanged();  // from before the reading: a change in between is seen
  US_ASSIGN_OR_RETURN(file->table_, file->Read());
  return file;
}

absl::StatusOr<std::shared_ptr<const TokenTable>> TokenFile::Read() const {
  US_ASSIGN_OR_RETURN(const std::string text, ReadFile(path_, kMaxFileBytes));
  absl::StatusOr<TokenTable> table = TokenTable::Parse(text);
  if (!table.ok()) return Annotate(table.status(), path_);
  return std::make_shared<const TokenTable>(*std::move(table));
}

std::optional<TokenOwner> TokenFile::Find(std::string_view token) {
  std::shared_ptr<const TokenTable> table;
  {
    absl::MutexLock lock(&mutex_);
    if (watched_.HaveChanged()) {
      auto read = Read();
      if (!read.ok()) {
        LogEvent(LogLevel::kError, "tokens_not_reloaded",
                 {{"file", path_}, {"error", std::string(read.status().message())}});
      } else if (**read != *table_) {
        table_ = *std::move(read);
        LogEvent(LogLevel::kInfo, "tokens_reloaded",
                 {{"file", path_}, {"tokens", LogNumber(table_->size())}});
      }
    }
    table = table_;
  }
  return table->Find(token);
}

}  // namespace ultrasketch
