// Link: the socket to kvmd and the thread that serves it.
//
// The thread connects, says hello, reads, sends what the socket would not take at once, and reconnects
// with jittered back-off, which begins anew only once a connection has been of use for a while. Requests are asynchronous: a continuation
// runs on the link's thread with the reply, or with kUnavailable when the connection ends first. Call() waits for one, up to a deadline.
// Sending tries the socket at once in the caller's thread and never blocks.
//
// Thread-safe. Events run on the link's thread, never with a lock of the link held; they must not wait.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "kvclient/client.h"
#include "proto/base/unique_fd.h"
#include "proto/wire/frame.h"
#include "proto/wire/wire.pb.h"

namespace kvm {

using Fds = std::vector<UniqueFd>;
// kvmd's reply to a request, with the descriptors that came with it.
struct Answer {
  kvmwire::ServerMessage message;
  Fds fds;
  std::optional<Error> lost_fds;  // this process was out of descriptors when they came
};
using Reply = std::function<void(Result<Answer>)>;

// Work for the link's thread, from threads that may neither wait nor own a client (CUDA's callbacks).
// Thread-safe. Outlives the link; what comes after it has stopped is dropped.
class Mailbox {
 public:
  Mailbox();
  void Post(std::function<void()> task);
  void Wake() noexcept;
  // For the link.
  int fd() const noexcept { return wake_.get(); }
  void RunAll();  // and forgets that it was woken
  void Close();

 private:
  UniqueFd wake_;
  std::mutex mutex_;
  bool closed_ = false;
  std::vector<std::function<void()>> tasks_;
};

class Link {
 public:
  struct Events {
    // kvmd accepted the hello. An error closes the connection again.
    std::function<Status(const kvmwire::HelloReply&, Fds)> connected;
    // Messages that answer no request; an error in place of descriptors that this process could not take.
    std::function<void(const kvmwire::ServerMessage&, Result<Fds>)> announced;
    // False: what has been announced should be dealt with first. Nothing is read until the mailbox is woken.
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
  Error last_error() const;
  // Tasks posted there run on the link's thread, connected or not.
  const std::shared_ptr<Mailbox>& mailbox() const noexcept { return mailbox_; }

  // Sends without expecting a reply; false if not connected.
  bool Post(const kvmwire::ClientMessage& message);
  // Sends; `reply` runs exactly once, also if there is no connection (then in this thread, at once).
  void Request(kvmwire::ClientMessage message, const std::vector<int>& fds, Reply reply);
  // Sends and waits. Not for the link's own thread.
  [[nodiscard]] Result<Answer> Call(kvmwire::ClientMessage message, const std::vector<int>& fds, Deadline deadline);

 private:
  void Run();
  Status ConnectOnce();
  Status Serve();  // until the connection ends
  Status HandleFrame(Frame frame);
  Status SendLocked(const kvmwire::ClientMessage& message, const std::vector<int>& fds);
  void Disconnect(const Error& why);
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

  // The link's thread only.
  FrameReader reader_;
  bool greeted_ = false;
  std::optional<std::chrono::steady_clock::time_point> useful_since_;  // of this connection

  mutable std::mutex mutex_;  // everything below
  UniqueFd socket_;
  FrameWriter writer_;
  bool writer_blocked_ = false;
  std::uint64_t next_request_ = 1;
  std::unordered_map<std::uint64_t, Reply> requests_;
  Error last_error_;
};

}  // namespace kvm
