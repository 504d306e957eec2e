#include "engine/base/mapping_guard.h"

#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>

#include <sys/eventfd.h>
#include <sys/mman.h>

#include "engine/base/check.h"
#include "engine/base/mapped_pages.h"

namespace ultrasketch {

// Read by the signal's handler on any thread at any time: nothing but lock-free atomics.
struct MappingGuard::Entry {
  std::atomic<bool> is_taken{false};
  std::atomic<uintptr_t> begin{0};
  std::atomic<uintptr_t> end{0};  // 0: no mapping
  std::atomic<bool> is_damaged{false};
};

namespace {

static_assert(std::atomic<uintptr_t>::is_always_lock_free);
static_assert(std::atomic<bool>::is_always_lock_free);

// Entries are never freed, so that a handler may always walk through them.
struct Chunk {
  std::array<MappingGuard::Entry, 64> entries;
  std::atomic<Chunk*> next{nullptr};
};

Chunk first_chunk;
std::atomic<int> event_descriptor{-1};
struct sigaction previous_action;
uintptr_t page_bytes;

MappingGuard::Entry& TakeEntry() {
  for (Chunk* chunk = &first_chunk;; chunk = chunk->next.load()) {
    for (MappingGuard::Entry& entry : chunk->entries) {
      if (!entry.is_taken.exchange(true)) return entry;
    }
    if (chunk->next.load() != nullptr) continue;
    auto* const added = new Chunk;
    Chunk* expected = nullptr;
    if (!chunk->next.compare_exchange_strong(expected, added)) delete added;
  }
}

MappingGuard::Entry* FindEntry(uintptr_t address) {
  for (Chunk* chunk = &first_chunk; chunk != nullptr; chunk = chunk->next.load()) {
    for (MappingGuard::Entry& entry : chunk->entries) {
      if (address < entry.end.load() && address >= entry.begin.load()) return &entry;
    }
  }
  return nullptr;
}

// Replaces what cannot be read of the mapping by zeros. From the fault to the end, as what follows
// it cannot be read either: one new mapping, not one for each page.
bool Repair(MappingGuard::Entry& entry, uintptr_t address) {
  const uintptr_t first_page = address / page_bytes * page_bytes;
  const uintptr_t end = (entry.end.load() + page_bytes - 1) / page_bytes * page_bytes;
  // Of the functions that POSIX does not promise for handlers, but a bare system call on Linux.
  if (mmap(reinterpret_cast<void*>(first_page), end - first_page, PROT_READ,
           MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED) {
    return false;
  }
  entry.is_damaged.store(true);
  const uint64_t one = 1;
  const ssize_t written = write(event_descriptor.load(), &one, sizeof(one));
  return written == sizeof(one) || errno == EAGAIN;  // full: a reader will see it all the same
}

void HandleBusError(int signal, siginfo_t* info, void* /*context*/) {
  const int saved_errno = errno;
  if (info->si_code == BUS_ADRERR) {
    const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
    MappingGuard::Entry* const entry = FindEntry(address);
    if (entry != nullptr && Repair(*entry, address)) {
      errno = saved_errno;
      return;
    }
  }
  // The access is tried again when this returns, and fails as it did without a guard.
  sigaction(signal, &previous_action, nullptr);
  errno = saved_errno;
}

}  // namespace

void GuardMappings() {
  US_CHECK(event_descriptor.load() == -1);
  page_bytes = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  event_descriptor.store(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  US_CHECK(event_descriptor.load() >= 0);
  struct sigaction action = {};
  action.sa_sigaction = HandleBusError;
  action.sa_flags = SA_SIGINFO;
  sigemptyset(&action.sa_mask);
  US_CHECK(sigaction(SIGBUS, &action, &previous_action) == 0);
}

int DamagedMappingsDescriptor() { return event_descriptor.load(); }

MappingGuard::MappingGuard(const void* data, int64_t num_bytes) : entry_(&TakeEntry()) {
  const auto begin = reinterpret_cast<uintptr_t>(data);
  entry_->is_damaged.store(false);
  entry_->begin.store(begin);
  entry_->end.store(begin + static_cast<uintptr_t>(num_bytes));
}

MappingGuard::~MappingGuard() {
  entry_->end.store(0);
  entry_->is_taken.store(false);
}

bool MappingGuard::is_damaged() const { return entry_->is_damaged.load(); }

void ReleaseMappedPages(const void* data, int64_t num_bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(data);
  const uintptr_t end = begin + static_cast<uintptr_t>(num_bytes);
  const MappingGuard::Entry* const entry = FindEntry(begin);
  if (num_bytes <= 0 || entry == nullptr || end > entry->end.load()) return;
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t first = (begin + page - 1) / page * page;
  const uintptr_t last = end / page * page;
  // It can only fail for pages that are locked, which then stay.
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

}  // namespace ultrasketch
