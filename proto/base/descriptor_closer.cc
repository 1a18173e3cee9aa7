#include "proto/base/descriptor_closer.h"

#include <fcntl.h>
#include <linux/sockios.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>
#include <deque>
#include <functional>
#include <map>
#include <new>
#include <utility>

#include "proto/base/detached_thread.h"
#include "proto/base/thread_safety.h"

namespace kvm {
namespace {

// Users that have a thread at a time; others wait for one of them.
constexpr std::size_t kMaxThreads = 64;
// Memory of this size is freed about as fast as it is handed to a thread.
constexpr std::uint64_t kQuicklyFreedBytes = 64 << 10;

bool QuicklyClosed(int fd) noexcept {
  struct stat info {};
  return ::fcntl(fd, F_GET_SEALS) >= 0 && ::fstat(fd, &info) == 0 &&
         static_cast<std::uint64_t>(info.st_blocks) * S_BLKSIZE <= kQuicklyFreedBytes;
}

}  // namespace

bool MayBeMemory(int fd) noexcept {
  if (::fcntl(fd, F_GET_SEALS) >= 0) return true;
  struct statx info {};
  if (::statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, &info) != 0) return false;
  return S_ISCHR(info.stx_mode) || (info.stx_mode & S_IFMT) == 0;  // 0: of no file system
}

struct DescriptorCloser::State {
  struct Descriptor {
    UniqueFd fd;
    bool memory = false;
  };
  struct Waiting {
    std::deque<Descriptor> fds;
    std::size_t memory = 0, others = 0;           // with the one that is being closed
    std::chrono::steady_clock::time_point since;  // that one's, or the first one's
    bool running = false;
  };

  mutable Mutex mutex;
  std::map<std::uint32_t, Waiting> of_user KVM_GUARDED_BY(mutex);
  std::size_t threads KVM_GUARDED_BY(mutex) = 0;
  // Held while it is called, so that it is not called after it has been taken away
  Mutex calling;
  std::function<void()> closed KVM_GUARDED_BY(calling);
};

DescriptorCloser::DescriptorCloser() : state_(std::make_shared<State>()) {}

DescriptorCloser::~DescriptorCloser() { OnClosed(nullptr); }

void DescriptorCloser::OnClosed(std::function<void()> closed) {
  MutexLock lock(state_->calling);
  state_->closed = std::move(closed);
}

void DescriptorCloser::StartForSockets() noexcept { static_cast<void>(sockets_.Start()); }

void DescriptorCloser::CloseAll(std::uint32_t uid, std::span<UniqueFd> fds) noexcept {
  for (UniqueFd& fd : fds) {
    if (fd && QuicklyClosed(fd.get())) fd.Reset();
  }
  if (std::none_of(fds.begin(), fds.end(), [](const UniqueFd& fd) { return bool{fd}; })) return;
  try {
    Queue(uid, fds);
  } catch (const std::bad_alloc&) {
    for (UniqueFd& fd : fds) fd.Reset();
  }
}

void DescriptorCloser::Queue(std::uint32_t uid, std::span<UniqueFd> fds) {
  MutexLock lock(state_->mutex);
  State::Waiting& waiting = state_->of_user[uid];
  if (waiting.memory + waiting.others == 0) waiting.since = std::chrono::steady_clock::now();
  for (UniqueFd& fd : fds) {
    if (!fd) continue;
    const bool memory = MayBeMemory(fd.get());
    waiting.fds.push_back({std::move(fd), memory});
    ++(memory ? waiting.memory : waiting.others);
  }
  if (waiting.running || waiting.fds.empty() || state_->threads >= kMaxThreads) return;
  // Without a thread they wait for the next call, or for another user's thread.
  if (!StartDetached([state = state_, uid] { Run(state, uid); })) return;
  waiting.running = true;
  ++state_->threads;
}

void DescriptorCloser::CloseSocket(std::uint32_t uid, UniqueFd socket) noexcept {
  // Nothing is added to it from here on.
  static_cast<void>(::shutdown(socket.get(), SHUT_RDWR));
  int unread = 0;
  if (::ioctl(socket.get(), SIOCINQ, &unread) == 0 && unread == 0) return;
  if (!sockets_.Take(socket)) Close(uid, std::move(socket));
}

bool DescriptorCloser::Behind(std::uint32_t uid) const {
  MutexLock lock(state_->mutex);
  const auto found = state_->of_user.find(uid);
  if (found == state_->of_user.end()) return false;
  const State::Waiting& waiting = found->second;
  if (waiting.memory >= kMostMemory || waiting.others >= kMostWaiting) return true;
  return waiting.others >= kMaxWaiting && std::chrono::steady_clock::now() - waiting.since > kPatience;
}

bool DescriptorCloser::Closing(std::uint32_t uid) const {
  MutexLock lock(state_->mutex);
  const auto found = state_->of_user.find(uid);
  return found != state_->of_user.end() && found->second.memory + found->second.others > 0;
}

void DescriptorCloser::Run(const std::shared_ptr<State>& state, std::uint32_t uid) {
  ::pthread_setname_np(::pthread_self(), "closer");
  MutexLock lock(state->mutex);
  for (bool more = true; more;) {
    State::Waiting& waiting = state->of_user[uid];
    waiting.running = true;
    while (!waiting.fds.empty()) {
      State::Descriptor next = std::move(waiting.fds.front());
      waiting.fds.pop_front();
      waiting.since = std::chrono::steady_clock::now();
      lock.Unlock();
      next.fd.Reset();
      lock.Lock();
      --(next.memory ? waiting.memory : waiting.others);
    }
    state->of_user.erase(uid);
    lock.Unlock();
    {
      MutexLock call(state->calling);
      if (state->closed) state->closed();
    }
    lock.Lock();
    const auto next = std::find_if(state->of_user.begin(), state->of_user.end(), [](const auto& other) { return !other.second.running; });
    more = next != state->of_user.end();
    if (more) uid = next->first;
  }
  --state->threads;
}

}  // namespace kvm
