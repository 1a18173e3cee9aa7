#include "client/connection/link.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>

#include "client/connection/attempt.h"
#include "client/connection/wait.h"
#include "proto/base/fault_point.h"
#include "proto/wire/protocol_limits.h"

namespace kvm {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kHelloTimeout{5000};
// Nothing tells when kvmd has accepted some of those that wait.
constexpr milliseconds kFullPause{4}, kMostFullPause{64};
// Nothing tells when the kernel takes descriptors again.
constexpr milliseconds kHeldBackPause{20};

int PollTimeout(Deadline deadline) {
  const auto left = std::chrono::duration_cast<milliseconds>(deadline - steady_clock::now()).count();
  return static_cast<int>(std::clamp<std::int64_t>(left + 1, 0, 60'000));
}

// Takes no memory: the text is short.
Error OutOfMemory() { return {Errc::kResourceExhausted, "out of memory", ENOMEM}; }

}  // namespace

Mailbox::Mailbox() : wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

void Mailbox::Post(Task&& task) noexcept {
  {
    MutexLock lock(mutex_);
    if (closed_) return;
    tasks_.splice(tasks_.end(), task);
  }
  Wake();
}

void Mailbox::Wake() noexcept {
  const std::uint64_t one = 1;
  // A failed write needs no handling: the counter is full then, which wakes the thread as well.
  [[maybe_unused]] const ssize_t written = ::write(wake_.get(), &one, sizeof(one));
}

void Mailbox::RunAll() {
  std::uint64_t count = 0;
  [[maybe_unused]] const ssize_t got = ::read(wake_.get(), &count, sizeof(count));
  Task tasks;
  {
    MutexLock lock(mutex_);
    tasks.swap(tasks_);
  }
  for (const std::function<void()>& task : tasks) Attempt(task);
}

void Mailbox::Close() {
  Task dropped;
  MutexLock lock(mutex_);
  closed_ = true;
  dropped.swap(tasks_);
}

Link::Link(const ClientOptions& options, Events events) : options_(options), events_(std::move(events)), random_(std::random_device{}()) {}

Link::~Link() { Stop(); }

void Link::Start() {
  thread_ = std::thread([this] { Run(); });
}

void Link::Stop() {
  stop_.store(true);
  mailbox_->Wake();
  if (thread_.joinable()) thread_.join();
  mailbox_->Close();
  FailRequests(MakeError(Errc::kCancelled, "client closed"));
}

Error Link::last_error() const {
  MutexLock lock(mutex_);
  return last_error_;
}

void Link::Pause(milliseconds pause) {
  pollfd poll_fd{mailbox_->fd(), POLLIN, 0};
  const Deadline until = After(pause);
  while (!stop_.load() && steady_clock::now() < until) {
    if (::poll(&poll_fd, 1, PollTimeout(until)) > 0) mailbox_->RunAll();
  }
}

void Link::Run() {
  milliseconds pause = options_.reconnect_min;
  while (!stop_.load()) {
    useful_since_.reset();
    Error why = OutOfMemory();
    Attempt([&] { why = ServeOne(); });
    // A connection that fails just after the hello counts as one that fails before it.
    if (useful_since_ && steady_clock::now() - *useful_since_ >= options_.reconnect_max) pause = options_.reconnect_min;
    Disconnect(std::move(why));
    if (stop_.load()) return;
    // Between half and all of the pause, so that the workers of a node do not all reconnect at the
    // same instant.
    const auto jittered = std::uniform_int_distribution<std::int64_t>(pause.count() / 2, pause.count())(random_);
    Pause(milliseconds(jittered));
    pause = std::min(2 * pause, options_.reconnect_max);
  }
}

Error Link::ServeOne() {
  Status ended = ConnectOnce();
  if (ended) ended = Serve();
  return ended ? MakeError(Errc::kUnavailable, "kvmd closed the connection") : ended.error();
}

Status Link::ConnectOnce() {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (options_.socket_path.size() >= sizeof(address.sun_path)) {
    return MakeError(Errc::kInvalidArgument, "socket path too long: " + options_.socket_path);
  }
  std::memcpy(address.sun_path, options_.socket_path.c_str(), options_.socket_path.size());
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket) return SystemError("socket");
  // A Unix socket connects at once or, while more wait to be accepted than may, says EAGAIN: kvmd
  // is there.
  const Deadline until = After(options_.timeout);
  milliseconds pause = kFullPause;
  const auto connect_once = [&] { return ::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0; };
  bool connected = connect_once();
  while (!connected && errno == EAGAIN && !stop_.load() && steady_clock::now() < until) {
    Pause(milliseconds(std::uniform_int_distribution<std::int64_t>(1, pause.count())(random_)));
    pause = std::min(2 * pause, kMostFullPause);
    connected = connect_once();
  }
  if (!connected) {
    Error error = SystemError("connect " + options_.socket_path);
    error.code = error.sys_errno == EACCES || error.sys_errno == EPERM ? Errc::kPermissionDenied : Errc::kUnavailable;
    return error;
  }
  kvmwire::ClientMessage message;
  kvmwire::Hello& hello = *message.mutable_hello();
  hello.set_protocol_version(kProtocolVersion);
  hello.set_role(kvmwire::WORKER);
  hello.set_client_name(options_.name);
  hello.set_wants_payload(options_.map_payload);
  hello.set_library_version(KVM_VERSION);
  hello.set_instance(instance_);
  reader_ = FrameReader();
  greeted_ = false;
  MutexLock lock(mutex_);
  socket_ = std::move(socket);
  writer_ = FrameWriter();
  sent_meanwhile_ = FrameWriter();
  writer_blocked_ = false;
  return SendLocked(message, {});
}

Status Link::Serve() {
  const Deadline hello_deadline = After(kHelloTimeout);
  Deadline next_tick = After(kTick);
  int socket = -1;
  {
    MutexLock lock(mutex_);
    socket = socket_.get();  // valid until this thread calls Disconnect
  }
  while (!stop_.load()) {
    pollfd poll_fds[2] = {{socket, 0, 0}, {mailbox_->fd(), POLLIN, 0}};
    if (events_.takes_more()) poll_fds[0].events |= POLLIN;
    bool held_back = false;
    {
      MutexLock lock(mutex_);
      held_back = writer_blocked_ && writer_.held_back() != FrameWriter::HeldBack::kNo;
      if (writer_blocked_ && !held_back) poll_fds[0].events |= POLLOUT;
    }
    ::poll(poll_fds, 2, PollTimeout(held_back ? std::min(next_tick, After(kHeldBackPause)) : next_tick));
    if (poll_fds[1].revents != 0) mailbox_->RunAll();
    if (held_back || (poll_fds[0].revents & POLLOUT)) {
      MutexLock lock(mutex_);
      Result<bool> drained = writer_.Drain(socket);
      if (!drained) return drained.error();
      writer_blocked_ = !*drained;
    }
    if (poll_fds[0].revents & (POLLIN | POLLHUP | POLLERR)) {
      Result<ReadOutcome> outcome = reader_.Fill(socket);
      if (!outcome) return outcome.error();
      for (;;) {
        Result<std::optional<Frame>> frame = reader_.Next();
        if (!frame) return frame.error();
        if (!*frame) break;
        if (Status handled = HandleFrame(std::move(**frame)); !handled) return handled.error();
      }
      if (*outcome == ReadOutcome::kEnd) return {};
    }
    if (!greeted_ && steady_clock::now() >= hello_deadline) return MakeError(Errc::kDeadlineExceeded, "kvmd did not answer the hello");
    if (steady_clock::now() >= next_tick) {
      next_tick = After(kTick);
      if (greeted_) events_.tick();
    }
  }
  return {};
}

Status Link::HandleFrame(Frame frame) {
  kvmwire::ServerMessage message;
  if (!message.ParseFromString(frame.payload)) return MakeError(Errc::kProtocol, "kvmd sent a message that can't be parsed");
  if (message.body_case() == kvmwire::ServerMessage::kGoodbye) {
    return MakeError(Errc::kUnavailable, "kvmd ended the connection: " + message.goodbye().reason());
  }
  if (!greeted_) {
    if (message.has_error()) return MakeError(static_cast<Errc>(message.error().code()), "kvmd refused: " + message.error().message());
    if (message.body_case() != kvmwire::ServerMessage::kHelloReply) return MakeError(Errc::kProtocol, "kvmd did not begin with a hello");
    greeted_ = true;
    if (frame.lost_fds) {
      Error error = *frame.lost_fds;
      error.message = "can't take kvmd's registry: this process is " + error.message;
      return error;
    }
    return Greeted(message.hello_reply(), std::move(frame.fds));
  }
  if (message.request_id() == 0) {
    events_.announced(message, frame.lost_fds ? Result<Fds>(*frame.lost_fds) : Result<Fds>(std::move(frame.fds)));
    return {};
  }
  const std::uint64_t request = message.request_id();
  // Made while the request still waits: a lack of memory leaves it to those that fail with the
  // connection.
  Result<Answer> answer = OutOfMemory();
  if (message.has_error()) {
    answer = MakeError(static_cast<Errc>(message.error().code()), message.error().message());
  } else {
    answer = Answer{std::move(message), std::move(frame.fds), std::move(frame.lost_fds)};
  }
  Reply reply;
  {
    MutexLock lock(mutex_);
    const auto found = requests_.find(request);
    if (found == requests_.end()) return {};
    reply = std::move(found->second);
    requests_.erase(found);
  }
  reply(std::move(answer));
  return {};
}

// Other threads may send as soon as connected() is true, or what they note while it is false would
// be missed by the event. But what they ask for may build on what the event tells kvmd, as a region
// does on the declaration of its model: their messages wait for the event's end.
Status Link::Greeted(const kvmwire::HelloReply& hello, Fds fds) {
  {
    MutexLock lock(mutex_);
    greeter_ = std::this_thread::get_id();
  }
  client_id_.store(hello.client_id(), std::memory_order_relaxed);
  connected_.store(true, std::memory_order_release);
  Status connected = events_.connected(hello, std::move(fds));
  MutexLock lock(mutex_);
  greeter_ = {};
  if (!connected) return connected;
  useful_since_ = steady_clock::now();
  writer_.Append(std::exchange(sent_meanwhile_, {}));
  const Result<bool> drained = writer_.Drain(socket_.get());
  writer_blocked_ = !drained || !*drained;
  return {};
}

void Link::Disconnect(Error why) {
  Error lost = OutOfMemory();
  Attempt([&] { lost = MakeError(Errc::kUnavailable, "connection to kvmd lost: " + why.ToString()); });
  {
    MutexLock lock(mutex_);
    socket_.Reset();
    greeter_ = {};
    last_error_ = std::move(why);
  }
  client_id_.store(0, std::memory_order_relaxed);
  const bool was_connected = connected_.exchange(false);
  FailRequests(lost);
  if (was_connected) Attempt(events_.disconnected);
}

void Link::FailRequests(const Error& why) {
  std::unordered_map<std::uint64_t, Reply> failed;
  {
    MutexLock lock(mutex_);
    failed.swap(requests_);
  }
  for (auto& request : failed) {
    Result<Answer> answer = OutOfMemory();
    Attempt([&] { answer = why; });
    Attempt([&] { request.second(std::move(answer)); });
  }
}

Status Link::SendLocked(const kvmwire::ClientMessage& message, const std::vector<int>& fds) {
  if (!socket_) return MakeError(Errc::kUnavailable, "not connected to kvmd");
  const std::string payload = message.SerializeAsString();
  if (greeter_ != std::thread::id() && greeter_ != std::this_thread::get_id()) return sent_meanwhile_.Append(payload, fds);
  if (writer_blocked_) return writer_.Append(payload, fds);
  const Result<bool> drained = writer_.Send(socket_.get(), payload, fds);
  if (!drained && drained.error().code != Errc::kSystem) return drained.error();
  // The reading side reports a broken socket, and reconnects.
  writer_blocked_ = !drained || !*drained;
  if (writer_blocked_) mailbox_->Wake();
  return {};
}

bool Link::Post(const kvmwire::ClientMessage& message) {
  if (!connected()) return false;
  MutexLock lock(mutex_);
  return SendLocked(message, {}).has_value();
}

void Link::Request(kvmwire::ClientMessage message, const std::vector<int>& fds, Reply reply) {
  Status sent = MakeError(Errc::kUnavailable, "not connected to kvmd");
  if (connected()) {
    MutexLock lock(mutex_);
    message.set_request_id(next_request_++);
    sent = SendLocked(message, fds);
    if (sent) {
      requests_.emplace(message.request_id(), std::move(reply));
      KVM_FAULT_POINT(client_request_sent);
      return;
    }
  }
  reply(sent.error());
}

Result<Answer> Link::Call(kvmwire::ClientMessage message, const std::vector<int>& fds, Deadline deadline) {
  struct Waiting {
    Mutex mutex;
    std::condition_variable done;
    std::optional<Result<Answer>> reply KVM_GUARDED_BY(mutex);
  };
  auto waiting = std::make_shared<Waiting>();
  Request(std::move(message), fds, [waiting](Result<Answer> reply) {
    MutexLock lock(waiting->mutex);
    waiting->reply = std::move(reply);
    waiting->done.notify_all();
  });
  MutexLock lock(waiting->mutex);
  if (!WaitUntil(waiting->done, lock, deadline, [&]() KVM_REQUIRES(waiting->mutex) { return waiting->reply.has_value(); })) {
    return MakeError(Errc::kDeadlineExceeded, "kvmd did not answer in time");
  }
  return std::move(*waiting->reply);
}

}  // namespace kvm
