#include "proto/base/descriptor_closer.h"

#include <fcntl.h>
#include <linux/sockios.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>
#include <deque>
#include <map>
#include <new>
#include <utility>

#include "proto/base/detached_thread.h"
#include "proto/base/thread_safety.h"

namespace kvm {
namespace {

// Users that have a thread at a time; others wait for one of them.
constexpr std::size_t kMaxThreads = 64;

}  // namespace

bool MayBeMemory(int fd) noexcept {
  if (::fcntl(fd, F_GET_SEALS) >= 0) return true;
  struct statx info {};
  if (::statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, &info) != 0) return false;
  return S_ISCHR(info.stx_mode) || (info.stx_mode & S_IFMT) == 0;  // 0: of no file system
}

struct DescriptorCloser::State {
  struct Waiting {
    std::deque<UniqueFd> fds;
    std::size_t count = 0;                        // with the one that is being closed
    std::chrono::steady_clock::time_point since;  // that one's, or the first one's
    bool running = false;
  };

  mutable Mutex mutex;
  std::map<std::uint32_t, Waiting> of_user KVM_GUARDED_BY(mutex);
  std::size_t threads KVM_GUARDED_BY(mutex) = 0;
};

DescriptorCloser::DescriptorCloser() : state_(std::make_shared<State>()) {}

void DescriptorCloser::StartForSockets() noexcept { static_cast<void>(sockets_.Start()); }

void DescriptorCloser::CloseAll(std::uint32_t uid, std::span<UniqueFd> fds) noexcept {
  try {
    Queue(uid, fds);
  } catch (const std::bad_alloc&) {
    for (UniqueFd& fd : fds) fd.Reset();
  }
}

void DescriptorCloser::Queue(std::uint32_t uid, std::span<UniqueFd> fds) {
  MutexLock lock(state_->mutex);
  State::Waiting& waiting = state_->of_user[uid];
  if (waiting.count == 0) waiting.since = std::chrono::steady_clock::now();
  for (UniqueFd& fd : fds) {
    if (fd) waiting.fds.push_back(std::move(fd));
  }
  waiting.count = waiting.fds.size() + waiting.running;
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
  if (found == state_->of_user.end() || found->second.count < kMaxWaiting) return false;
  return found->second.count >= kMostWaiting || std::chrono::steady_clock::now() - found->second.since > kPatience;
}

void DescriptorCloser::Run(const std::shared_ptr<State>& state, std::uint32_t uid) {
  ::pthread_setname_np(::pthread_self(), "closer");
  MutexLock lock(state->mutex);
  for (bool more = true; more;) {
    State::Waiting& waiting = state->of_user[uid];
    waiting.running = true;
    while (!waiting.fds.empty()) {
      UniqueFd fd = std::move(waiting.fds.front());
      waiting.fds.pop_front();
      waiting.since = std::chrono::steady_clock::now();
      lock.Unlock();
      fd.Reset();
      lock.Lock();
      waiting.count = waiting.fds.size() + 1;
    }
    state->of_user.erase(uid);
    const auto next = std::find_if(state->of_user.begin(), state->of_user.end(), [](const auto& other) { return !other.second.running; });
    more = next != state->of_user.end();
    if (more) uid = next->first;
  }
  --state->threads;
}

}  // namespace kvm
