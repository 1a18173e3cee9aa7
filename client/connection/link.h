// Link: the socket to kvmd and the thread that serves it.
//
// The thread connects, sends the hello, reads, and sends what the socket did not accept at once. It
// reconnects with a jittered back-off; the back-off starts again from the shortest pause only after
// a connection has worked for a while. Requests are asynchronous: a continuation runs on the link's
// thread with the reply, or with kUnavailable if the connection ends first. Call() waits for a
// reply, up to a deadline. A message is sent at once in the caller's thread if the socket accepts
// it; sending never blocks. A lack of memory on the link's thread ends the connection, and the link
// connects again.
//
// Thread-safe. Events are called on the link's thread, never with a lock of the link held; they
// must not wait.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kvclient/client.h"
#include "proto/base/peer_fd.h"
#include "proto/base/thread_safety.h"
#include "proto/base/unique_fd.h"
#include "proto/wire/frame.h"
#include "proto/wire/wire.pb.h"

namespace kvm {

using Fds = std::vector<PeerFd>;
// kvmd's reply to a request, with the descriptors that came with it.
struct Answer {
  kvmwire::ServerMessage message;
  Fds fds;
  std::optional<Error> lost_fds;  // set if this process was out of descriptors when they came
};
using Reply = std::function<void(Result<Answer>)>;

// Work for the link's thread, from threads that may neither wait nor own a client (CUDA's
// callbacks). Thread-safe. A mailbox may outlive the link; tasks that are posted after the link has
// stopped are dropped.
class Mailbox {
 public:
  // One task, or none. It is made where memory may be taken.
  using Task = std::list<std::function<void()>>;

  Mailbox();
  void Post(std::function<void()> task) KVM_EXCLUDES(mutex_) { Post(Task{std::move(task)}); }
  // Takes no memory. For threads of other libraries, through which no exception may pass.
  void Post(Task&& task) noexcept KVM_EXCLUDES(mutex_);
  void Wake() noexcept;
  // The following three are for the link.
  int fd() const noexcept { return wake_.get(); }
  void RunAll() KVM_EXCLUDES(mutex_);  // also clears the wake-up
  void Close() KVM_EXCLUDES(mutex_);

 private:
  UniqueFd wake_;
  Mutex mutex_;
  bool closed_ KVM_GUARDED_BY(mutex_) = false;
  Task tasks_ KVM_GUARDED_BY(mutex_);
};

class Link {
 public:
  struct Events {
    // kvmd has accepted the hello. What this function sends comes before what other threads send on
    // the connection, though connected() is true for them already. If it returns an error, the link
    // closes the connection again.
    std::function<Status(const kvmwire::HelloReply&, Fds)> connected;
    // A message that answers no request. The second argument is an error if this process could not
    // take the descriptors.
    std::function<void(const kvmwire::ServerMessage&, Result<Fds>)> announced;
    // False: announcements still have to be handled first, and the link reads nothing until the
    // mailbox is woken.
    std::function<bool()> takes_more;
    std::function<void()> disconnected;
    std::function<void()> tick;  // about each kTick while connected
  };
  static constexpr std::chrono::milliseconds kTick{250};

  Link(const ClientOptions& options, Events events);
  ~Link();

  void Start();
  void Stop();  // joins the thread; outstanding requests end with kCancelled

  bool connected() const noexcept { return connected_.load(std::memory_order_acquire); }
  std::uint64_t client_id() const noexcept { return client_id_.load(std::memory_order_relaxed); }
  Error last_error() const KVM_EXCLUDES(mutex_);
  // Tasks that are posted there run on the link's thread, whether it is connected or not.
  const std::shared_ptr<Mailbox>& mailbox() const noexcept { return mailbox_; }

  // Sends without expecting a reply; false if not connected.
  bool Post(const kvmwire::ClientMessage& message) KVM_EXCLUDES(mutex_);
  // Sends; `reply` is called exactly once. If there is no connection, it is called in this thread,
  // at once.
  void Request(kvmwire::ClientMessage message, const std::vector<int>& fds, Reply reply) KVM_EXCLUDES(mutex_);
  // Sends and waits for the reply. Must not be called on the link's thread.
  [[nodiscard]] Result<Answer> Call(kvmwire::ClientMessage message, const std::vector<int>& fds, Deadline deadline) KVM_EXCLUDES(mutex_);

 private:
  void Run();
  Error ServeOne();  // one connection, until it ends; returns why
  Status ConnectOnce();
  Status Serve();  // returns when the connection ends
  Status HandleFrame(Frame frame);
  Status Greeted(const kvmwire::HelloReply& hello, Fds fds);
  Status SendLocked(const kvmwire::ClientMessage& message, const std::vector<int>& fds) KVM_REQUIRES(mutex_);
  void Disconnect(Error why);
  void FailRequests(const Error& why);
  void Pause(std::chrono::milliseconds pause);

  const ClientOptions options_;
  const Events events_;
  const std::shared_ptr<Mailbox> mailbox_ = std::make_shared<Mailbox>();
  std::atomic<bool> stop_{false};
  std::atomic<bool> connected_{false};
  std::atomic<std::uint64_t> client_id_{0};
  std::thread thread_;
  std::minstd_rand random_;
  const std::uint64_t instance_ = std::uint64_t{std::random_device{}()} << 32 | std::random_device{}() | 1;

  // The following are used on the link's thread only.
  FrameReader reader_;
  bool greeted_ = false;
  // Since when this connection has worked
  std::optional<std::chrono::steady_clock::time_point> useful_since_;

  mutable Mutex mutex_;
  UniqueFd socket_ KVM_GUARDED_BY(mutex_);  // made and closed by the link's thread
  FrameWriter writer_ KVM_GUARDED_BY(mutex_);
  bool writer_blocked_ KVM_GUARDED_BY(mutex_) = false;
  // While Events::connected runs: the link's thread, and what other threads have sent meanwhile.
  std::thread::id greeter_ KVM_GUARDED_BY(mutex_);
  FrameWriter sent_meanwhile_ KVM_GUARDED_BY(mutex_);
  std::uint64_t next_request_ KVM_GUARDED_BY(mutex_) = 1;
  std::unordered_map<std::uint64_t, Reply> requests_ KVM_GUARDED_BY(mutex_);
  Error last_error_ KVM_GUARDED_BY(mutex_);
};

}  // namespace kvm
