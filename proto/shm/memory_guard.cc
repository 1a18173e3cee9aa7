#include "proto/shm/memory_guard.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <utility>
#include <vector>

#include "proto/base/thread_safety.h"

namespace kvm {

// One thread writes it while no handler can read it; then handlers read it.
struct MemoryGuard::Entry {
  // 0: free; stored last, so that a handler sees a complete entry
  std::atomic<std::uintptr_t> begin{0};
  std::atomic<std::uintptr_t> end{0};
  std::atomic<std::size_t> page_bytes{0};
  std::atomic<bool> writable{false};
  std::atomic<bool> lost{false};
};

// All guards of this process. Entries are made in batches that are never freed, so a handler walks
// them without a lock.
struct MemoryGuard::Table {
  struct Batch {
    std::array<Entry, 256> entries;
    std::atomic<Batch*> next{nullptr};
  };
  // The action that was installed before this handler.
  struct Previous {
    struct sigaction action {};
    std::atomic<bool> used_up{false};  // it asked to be called once
  };

  static Table& OfProcess();
  static void OnBusError(int signal, siginfo_t* info, void* context);
  bool Replace(std::uintptr_t address) noexcept;
  void PassOn(int signal, siginfo_t* info, void* context) noexcept;
  void Install() KVM_REQUIRES(mutex);
  Entry* Claim();

  Mutex mutex;  // signal handlers must not take it
  std::vector<Entry*> free KVM_GUARDED_BY(mutex);
  std::size_t batches KVM_GUARDED_BY(mutex) = 0;  // batches whose entries are in use or in `free`
  Batch first;

  // The actions of other code that this handler has been installed over.
  std::array<Previous, 8> previous;
  std::atomic<std::size_t> previous_count{0};
  // Index into `previous` of an action that never calls this handler
  std::atomic<std::size_t> last_resort{0};
  std::atomic<pid_t> passing_on{0};  // thread that runs an action of other code
};

namespace {

// Whether the kernel raised the signal for a memory access, rather than a process having sent it.
bool IsLoss(const siginfo_t& info) { return info.si_code == BUS_ADRERR || info.si_code == BUS_MCEERR_AR; }

std::atomic<std::uint64_t> all_losses{0};
// Handlers can't use a function's static: its initialisation takes a lock
std::atomic<void*> table_for_handlers{nullptr};

}  // namespace

// Never destroyed: a fault may come as late as at exit.
MemoryGuard::Table& MemoryGuard::Table::OfProcess() {
  static Table* const one = new Table;
  return *one;
}

bool MemoryGuard::Table::Replace(std::uintptr_t address) noexcept {
  for (Batch* batch = &first; batch != nullptr; batch = batch->next.load(std::memory_order_acquire)) {
    for (Entry& entry : batch->entries) {
      const std::uintptr_t begin = entry.begin.load(std::memory_order_acquire), end = entry.end.load(std::memory_order_relaxed);
      if (begin == 0 || address < begin || address >= end) continue;
      const bool writable = entry.writable.load(std::memory_order_relaxed);
      std::uintptr_t from = begin, to = end;
      if (writable) {
        const std::size_t page_bytes = entry.page_bytes.load(std::memory_order_relaxed);
        from = begin + (address - begin) / page_bytes * page_bytes;
        to = from + page_bytes;
      }
      // Before the zeros are mapped: a reader of one of them then sees that the memory was lost.
      entry.lost.store(true, std::memory_order_relaxed);
      all_losses.fetch_add(1, std::memory_order_release);
      const long mapped = ::syscall(SYS_mmap, from, to - from, writable ? PROT_READ | PROT_WRITE : PROT_READ,
                                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
      return static_cast<std::uintptr_t>(mapped) == from;
    }
  }
  return false;
}

void MemoryGuard::Table::OnBusError(int signal, siginfo_t* info, void* context) {
  const int saved = errno;
  auto* table = static_cast<Table*>(table_for_handlers.load(std::memory_order_acquire));
  if (!IsLoss(*info) || !table->Replace(reinterpret_cast<std::uintptr_t>(info->si_addr))) table->PassOn(signal, info, context);
  errno = saved;
}

void MemoryGuard::Table::PassOn(int signal, siginfo_t* info, void* context) noexcept {
  const auto self = static_cast<pid_t>(::syscall(SYS_gettid));
  const bool sent = info->si_code <= 0;
  // An action that was installed over this handler may call this handler again.
  const bool again = passing_on.load() == self;
  Previous& behind = previous[again ? last_resort.load() : previous_count.load(std::memory_order_acquire) - 1];
  const struct sigaction& action = behind.action;
  const bool once = (action.sa_flags & static_cast<int>(SA_RESETHAND)) != 0;
  if (action.sa_handler == SIG_IGN && sent) return;
  // The kernel does not let a process ignore a fault.
  if (action.sa_handler == SIG_DFL || action.sa_handler == SIG_IGN || (once && behind.used_up.exchange(true))) {
    struct sigaction standard {};
    ::sigaction(signal, &standard, nullptr);
    // A fault needs no resending: it is raised again at the same instruction.
    if (sent) ::syscall(SYS_tgkill, ::getpid(), self, signal);
    return;
  }
  sigset_t mask = action.sa_mask, before;
  if ((action.sa_flags & SA_NODEFER) == 0) ::sigaddset(&mask, signal);
  ::pthread_sigmask(SIG_BLOCK, &mask, &before);
  const pid_t outer = passing_on.exchange(self);
  if ((action.sa_flags & SA_SIGINFO) != 0) {
    action.sa_sigaction(signal, info, context);
  } else {
    action.sa_handler(signal);
  }
  // A signal that the action has raised comes now, and is still the action's
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  passing_on.store(outer);
}

void MemoryGuard::Table::Install() {
  table_for_handlers.store(this, std::memory_order_release);
  const std::size_t count = previous_count.load();
  struct sigaction now {};
  if (::sigaction(SIGBUS, nullptr, &now) != 0) return;
  if ((now.sa_flags & SA_SIGINFO) != 0 && now.sa_sigaction == &OnBusError) return;
  if (count == previous.size()) return;
  previous[count].action = now;
  if (now.sa_handler == SIG_DFL || now.sa_handler == SIG_IGN) last_resort = count;
  previous_count.store(count + 1, std::memory_order_release);
  struct sigaction ours {};
  ours.sa_sigaction = &OnBusError;
  ours.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER | SA_RESTART;
  ::sigemptyset(&ours.sa_mask);
  ::sigaction(SIGBUS, &ours, nullptr);
}

MemoryGuard::Entry* MemoryGuard::Table::Claim() {
  MutexLock lock(mutex);
  Install();
  if (free.empty()) {
    free.reserve(++batches * first.entries.size());  // so that Release can't fail
    Batch* batch = &first;
    if (batches > 1) {
      Batch* last = &first;
      while (Batch* next = last->next.load()) last = next;
      batch = new Batch;
      last->next.store(batch, std::memory_order_release);
    }
    for (Entry& entry : batch->entries) free.push_back(&entry);
  }
  Entry* entry = free.back();
  free.pop_back();
  return entry;
}

MemoryGuard::MemoryGuard(const void* begin, std::size_t bytes, std::size_t page_bytes, Access access) {
  const auto from = reinterpret_cast<std::uintptr_t>(begin);
  entry_ = Table::OfProcess().Claim();
  entry_->end.store(from + (bytes + page_bytes - 1) / page_bytes * page_bytes, std::memory_order_relaxed);
  entry_->page_bytes.store(page_bytes, std::memory_order_relaxed);
  entry_->writable.store(access == Access::kWrite, std::memory_order_relaxed);
  entry_->lost.store(false, std::memory_order_relaxed);
  entry_->begin.store(from, std::memory_order_release);
}

MemoryGuard::MemoryGuard(MemoryGuard&& other) noexcept : entry_(std::exchange(other.entry_, nullptr)) {}

MemoryGuard& MemoryGuard::operator=(MemoryGuard&& other) noexcept {
  if (this == &other) return *this;
  Release();
  entry_ = std::exchange(other.entry_, nullptr);
  return *this;
}

void MemoryGuard::Release() noexcept {
  if (entry_ == nullptr) return;
  entry_->begin.store(0, std::memory_order_release);
  Table& table = Table::OfProcess();
  MutexLock lock(table.mutex);
  table.free.push_back(std::exchange(entry_, nullptr));  // can't throw: Claim has reserved the room
}

bool MemoryGuard::lost() const noexcept {
  std::atomic_thread_fence(std::memory_order_acquire);
  return entry_ != nullptr && entry_->lost.load(std::memory_order_relaxed);
}

std::uint64_t MemoryGuard::losses() noexcept {
  std::atomic_thread_fence(std::memory_order_acquire);
  return all_losses.load(std::memory_order_relaxed);
}

}  // namespace kvm
