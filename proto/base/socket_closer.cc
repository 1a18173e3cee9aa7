#include "proto/base/socket_closer.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <memory>
#include <new>
#include <thread>
#include <utility>
#include <vector>

#include "proto/base/detached_thread.h"
#include "proto/base/thread_safety.h"

namespace kvm {
namespace {

// Connections that end with one thread.
constexpr std::size_t kAtOnce = 128;
// Until a lack of threads or of descriptors in flight may be over; no event tells.
constexpr std::chrono::milliseconds kPause{50};
// Where a closing thread has the socket that it receives from.
constexpr int kPost = 0;

// Plain system calls: libraries, such as a sanitizer's, take a number for the same descriptor in
// all threads.
bool CloseRange(unsigned first, unsigned last, unsigned flags) noexcept { return ::syscall(SYS_close_range, first, last, flags) == 0; }

// Gives the calling thread a table of its own that has `from` only, as kPost.
bool TakePost(int from) noexcept {
  const auto number = static_cast<unsigned>(from);
  if (!CloseRange(number + 1, ~0U, CLOSE_RANGE_UNSHARE)) return false;
  if (from != kPost && ::syscall(SYS_dup3, from, kPost, O_CLOEXEC) != kPost) return false;
  return CloseRange(kPost + 1, ~0U, 0);
}

// Room for one descriptor beside one byte.
struct Message {
  Message() noexcept {
    std::memset(&header, 0, sizeof(header));
    header.msg_iov = &vector;
    header.msg_iovlen = 1;
    header.msg_control = control;
    header.msg_controllen = sizeof(control);
  }
  Message(const Message&) = delete;
  Message& operator=(const Message&) = delete;

  char byte = 0;
  iovec vector{&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr header;
};

void SendOne(int to, int fd) noexcept {
  Message message;
  cmsghdr* const control = CMSG_FIRSTHDR(&message.header);
  control->cmsg_level = SOL_SOCKET;
  control->cmsg_type = SCM_RIGHTS;
  control->cmsg_len = CMSG_LEN(sizeof(fd));
  std::memcpy(CMSG_DATA(control), &fd, sizeof(fd));
  while (::sendmsg(to, &message.header, MSG_NOSIGNAL) < 0) {
    if (errno != EINTR) std::this_thread::sleep_for(kPause);
  }
}

// It stays open until the thread ends.
void ReceiveOne() noexcept {
  Message message;
  while (::syscall(SYS_recvmsg, kPost, &message.header, MSG_CMSG_CLOEXEC) < 0 && errno == EINTR) continue;
}

// How many connections a closing thread can receive: as many as its table of descriptors has room
// for beside kPost. One without room would be closed, and waited for, while it is received.
std::size_t Room() noexcept {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return 0;
  return limit.rlim_cur > kPost ? static_cast<std::size_t>(std::min<rlim_t>(limit.rlim_cur - kPost - 1, kAtOnce)) : 0;
}

// Also of a thread that has ended and has not closed all.
bool IsThere(pid_t thread) noexcept { return ::syscall(SYS_tgkill, ::getpid(), thread, 0) == 0; }

}  // namespace

// With the functions of its threads, each of which shares it.
struct SocketCloser::State : std::enable_shared_from_this<State> {
  enum class Table { kUnknown, kOwn, kShared };

  // In any of the threads, so it closes nothing; the kernel does, in the end.
  ~State() {
    for (UniqueFd& socket : waiting) static_cast<void>(socket.Release());
  }

  // Starts a closing thread. True: it has a table of its own, which `take_post` has given it, and
  // waits for connections.
  template <class TakePost>
  bool StartClosing(MutexLock& lock, TakePost take_post) KVM_REQUIRES(mutex);
  void NoteTable(bool own) KVM_EXCLUDES(mutex);
  // Of the thread that sends: until nothing waits.
  void Send(int to) KVM_EXCLUDES(mutex);
  // Of a closing thread: receives some connections, starts its successor and ends.
  void Close() KVM_EXCLUDES(mutex);
  std::size_t Receive() KVM_EXCLUDES(mutex);
  bool HandOver() KVM_EXCLUDES(mutex);

  Mutex mutex;
  std::condition_variable changed;
  std::deque<UniqueFd> waiting KVM_GUARDED_BY(mutex);
  bool sending KVM_GUARDED_BY(mutex) = false;
  std::size_t sent KVM_GUARDED_BY(mutex) = 0;  // closed here, and not received yet
  bool stopped KVM_GUARDED_BY(mutex) = false;
  Table newest KVM_GUARDED_BY(mutex) = Table::kUnknown;  // of the newest closing thread
  std::vector<pid_t> ending KVM_GUARDED_BY(mutex);       // closing threads that may still be there
};

template <class TakePost>
bool SocketCloser::State::StartClosing(MutexLock& lock, TakePost take_post) {
  newest = Table::kUnknown;
  const bool running = StartDetached([self = shared_from_this(), take_post] {
    const bool own = take_post();
    self->NoteTable(own);
    if (own) self->Close();
  });
  if (running) changed.wait(lock.native(), [this]() KVM_REQUIRES(mutex) { return newest != Table::kUnknown; });
  return newest == Table::kOwn;
}

void SocketCloser::State::NoteTable(bool own) {
  const MutexLock lock(mutex);
  newest = own ? Table::kOwn : Table::kShared;
  changed.notify_all();
}

void SocketCloser::State::Send(int to) {
  ::pthread_setname_np(::pthread_self(), "closer");
  MutexLock lock(mutex);
  while (!waiting.empty()) {
    UniqueFd socket = std::move(waiting.front());
    waiting.pop_front();
    lock.Unlock();
    SendOne(to, socket.get());
    socket.Reset();  // not the last close: it is on its way
    lock.Lock();
    ++sent;
    changed.notify_all();
  }
  sending = false;
  changed.notify_all();
}

void SocketCloser::State::Close() {
  ::pthread_setname_np(::pthread_self(), "closer");
  if (Receive() == 0) return;
  while (!HandOver()) std::this_thread::sleep_for(kPause);
}

// How many; 0: there won't be any more.
std::size_t SocketCloser::State::Receive() {
  std::size_t count = 0;
  while (count == 0) {
    MutexLock lock(mutex);
    changed.wait(lock.native(), [this]() KVM_REQUIRES(mutex) { return sent > 0 || (stopped && !sending); });
    if (sent == 0) return 0;
    count = std::min(sent, Room());
    sent -= count;
    lock.Unlock();
    if (count == 0) std::this_thread::sleep_for(kPause);
  }
  for (std::size_t i = 0; i < count; ++i) ReceiveOne();
  return count;
}

// False: not now.
bool SocketCloser::State::HandOver() {
  MutexLock lock(mutex);
  std::erase_if(ending, [](pid_t thread) { return !IsThere(thread); });
  if (ending.size() >= kMostEnding) return false;
  // Counted before it is started, since the successor may come here while this one waits for it.
  const auto self = static_cast<pid_t>(::syscall(SYS_gettid));
  ending.push_back(self);
  // The successor copies what this one has received and closes that; these are not the last closes.
  const bool started = StartClosing(lock, [] { return CloseRange(kPost + 1, ~0U, CLOSE_RANGE_UNSHARE); });
  if (!started) std::erase(ending, self);
  return started;
}

SocketCloser::SocketCloser() noexcept = default;

SocketCloser::~SocketCloser() {
  if (!state_) return;
  const MutexLock lock(state_->mutex);
  state_->stopped = true;
  state_->changed.notify_all();
}

bool SocketCloser::Start() noexcept {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) return false;
  UniqueFd to(ends[0]);
  const UniqueFd post(ends[1]);
  try {
    const auto state = std::make_shared<State>();
    to_ = std::make_shared<const UniqueFd>(std::move(to));
    MutexLock lock(state->mutex);
    state->ending.reserve(kMostEnding);
    if (!state->StartClosing(lock, [from = post.get()] { return TakePost(from); })) return false;
    state_ = state;
    return true;
  } catch (const std::bad_alloc&) {
    return false;
  }
}

bool SocketCloser::Take(UniqueFd& socket) noexcept {
  if (!state_) return false;
  const MutexLock lock(state_->mutex);
  try {
    state_->waiting.emplace_back();
  } catch (const std::bad_alloc&) {
    return false;
  }
  state_->waiting.back() = std::move(socket);
  // Without a thread they wait until the next one is taken.
  if (!state_->sending) state_->sending = StartDetached([state = state_, to = to_] { state->Send(to->get()); });
  return true;
}

std::size_t SocketCloser::waiting() const noexcept {
  if (!state_) return 0;
  const MutexLock lock(state_->mutex);
  return state_->waiting.size();
}

}  // namespace kvm
