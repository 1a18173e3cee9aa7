#include "daemon/server/session.h"

#include <fcntl.h>
#include <sys/socket.h>

#include <optional>

#include <boost/asio/post.hpp>

#include "daemon/broker/field_count.h"
#include "daemon/broker/known_fields.h"
#include "daemon/system/process_info.h"
#include "proto/base/socket_peer.h"
#include "proto/wire/protocol_limits.h"

namespace kvm::daemon {

namespace asio = boost::asio;
using std::chrono::steady_clock;

namespace {

constexpr WorkUnits kReadUnits = 4 * kSystemCallUnits;  // of one read, beside the messages in it
// With this many bytes of unread replies, kvmd stops reading from a client.
constexpr std::size_t kPauseBytes = 256 * 1024;
// Descriptors that may wait for a client; each one takes a descriptor of kvmd until the client has
// it.
constexpr std::size_t kMaxQueuedFds = 4096;
// Descriptors in flight to one client (sent, not read): they count against the limit of kvmd's
// user.
constexpr std::size_t kMaxFdsInFlight = 256;
// A connection that holds no more is not ended for what others of its user hold.
constexpr std::size_t kSmallLoad = 64 * 1024;
// Of a goodbye: it may quote what the client has sent
constexpr std::size_t kMaxReasonBytes = 1024;
// How often to try again: no event tells when a client has read the descriptors in flight.
constexpr std::chrono::milliseconds kReaderPause{5}, kKernelPause{50};

}  // namespace

Session::Session(Socket socket, const Config& config, Broker& broker, FairTurns& turns, UserLoads& loads, DescriptorCloser& closer,
                 Ended ended)
    : socket_(std::move(socket)),
      process_(socket_.get_executor()),
      config_(config),
      broker_(broker),
      turns_(turns),
      loads_(loads),
      closer_(closer),
      ended_(std::move(ended)),
      again_(socket_.get_executor()),
      pause_(socket_.get_executor()),
      connected_at_(steady_clock::now()) {}

Session::~Session() { LetGoOfProcess(); }

// The broker owns the descriptor.
void Session::LetGoOfProcess() {
  if (process_.is_open()) static_cast<void>(process_.release());
}

void Session::Start() {
  const Result<ucred> peer = PeerOf(socket_.native_handle());
  if (!peer) {
    Log(LogLevel::kWarn, "no_peer_credentials", {{"reason", peer.error().ToString()}});
    boost::system::error_code ignored;
    socket_.close(ignored);
    return;
  }
  credentials_ = {static_cast<std::uint32_t>(peer->pid), peer->uid, peer->gid};
  reader_ = FrameReader(closer_, peer->uid);
  writer_ = FrameWriter(kMaxFdsInFlight, &closer_, peer->uid);
  id_ = broker_.Join(*this, credentials_, PeerPidFd(socket_.native_handle(), credentials_.pid));
  const int process = broker_.ProcessOf(id_);
  if (const UniqueFd spare(::fcntl(socket_.native_handle(), F_DUPFD_CLOEXEC, 0)); process < 0 && !spare) {
    // Without a pidfd, kvmd could not tell whether the process still runs when its connection ends.
    // The client reconnects after a pause.
    const std::string reason = "kvmd is " + OutOfDescriptors(errno).ToString();
    LogLimited(LogLevel::kError, "out_of_descriptors",
               {{"what", "to watch a client's process"}, {"pid", credentials_.pid}, {"raise", "LimitNOFILE= of kvmd's unit"}});
    return CloseLater(reason);
  }
  if (process < 0) {
    static bool said = false;
    if (!std::exchange(said, true)) {
      Log(LogLevel::kWarn, "process_not_watched",
          {{"pid", credentials_.pid},
           {"reason", "another PID namespace, on a kernel before 6.5: only the end of the connection will tell"}});
    }
  }
  WaitForProcess(process);
  WaitForTurn();
}

// Until there is something to handle, and the client takes what it is sent.
void Session::WaitForTurn() {
  if (closed_) return;
  if (Paused()) return WaitUntilTaken();
  if (std::exchange(paused_, false)) NoteFrameProgress(true);
  if (backlog_) return AskForTurn();
  socket_.async_wait(Socket::wait_read, [self = shared_from_this()](const boost::system::error_code& error) {
    if (!error && !self->closed_) self->AskForTurn();
  });
}

void Session::WaitUntilTaken() {
  paused_ = !KeptWaiting();
  const auto look_again = [self = shared_from_this()](const boost::system::error_code& error) {
    if (error || self->closed_) return;
    self->Flush();
    self->GoOnAnnouncing();
    self->WaitForTurn();
  };
  if (writer_.queued_bytes() > 0 && writer_.held_back() == FrameWriter::HeldBack::kNo) {
    socket_.async_wait(Socket::wait_write, look_again);
  } else {
    pause_.expires_after(kKernelPause);
    pause_.async_wait(look_again);
  }
}

void Session::AskForTurn() {
  turns_.Add(credentials_.uid, [self = shared_from_this()](const WorkBudget& budget) { return self->TakeTurn(budget); });
}

// As part of its user's turn: what is sent is the user's as well.
void Session::GoOnAnnouncing() {
  if (!broker_.HasToTell(id_)) return;
  turns_.Add(credentials_.uid, [self = shared_from_this()](const WorkBudget&) {
    if (!self->closed_) self->broker_.GoOnAnnouncing(self->id_);
    return false;
  });
}

// True: it wants to go on at once.
bool Session::TakeTurn(const WorkBudget& budget) {
  if (closed_) return false;
  reading_ = true;
  const Status status = ReadAvailable(budget);
  reading_ = false;
  if (closed_) return false;
  if (!status) {
    status.error().code == Errc::kCancelled ? Close("") : Drop(status.error());
    return false;
  }
  Flush();
  if (closed_) return false;
  if (backlog_ && !Paused()) return true;
  WaitForTurn();
  return false;
}

// By what others of its user have waiting, so its own time limits go on.
bool Session::KeptWaiting() const { return loads_.ManyFds(credentials_.uid) || closer_.Behind(credentials_.uid); }

bool Session::Paused() const {
  return KeptWaiting() || writer_.queued_bytes() > kPauseBytes || writer_.queued_fds() > kMaxFrameFds || broker_.Behind(id_);
}

// Errors: kCancelled for a client that has closed, else the violation of the protocol.
Status Session::ReadAvailable(const WorkBudget& budget) {
  for (;;) {
    bool handled_any = false;
    for (;;) {
      if (broker_.Busy(id_)) broker_.GoOn(id_);
      if (Status outcome = broker_.Outcome(id_); !outcome) return outcome;
      backlog_ = broker_.Busy(id_) || budget.used_up() || Paused();
      if (backlog_) return {};
      Result<std::optional<Frame>> frame = reader_.Next();
      if (!frame) return frame.error();
      if (!*frame) break;
      handled_any = true;
      if (Status handled = HandleFrame(std::move(**frame)); !handled) return handled;
      if (closed_ || closing_) return {};
    }
    NoteFrameProgress(handled_any);
    Spend(kReadUnits);
    const std::size_t known = reader_.held_fds();
    Result<ReadOutcome> outcome = reader_.Fill(socket_.native_handle());
    if (Status memory = CheckDescriptors(known); !memory) return memory;
    if (!outcome) {
      if (outcome.error().sys_errno == ECONNRESET) return MakeError(Errc::kCancelled, "connection reset");
      return outcome.error();
    }
    if (!NoteLoad()) return MakeError(Errc::kResourceExhausted, loads_.WhyTooManyBytes(credentials_.uid));
    if (*outcome == ReadOutcome::kWouldBlock) return {};
    if (*outcome == ReadOutcome::kEnd) return MakeError(Errc::kCancelled, "closed");
  }
}

// Those that came behind the first `known`.
Status Session::CheckDescriptors(std::size_t known) const {
  for (std::size_t i = known; i < reader_.held_fds(); ++i) {
    const PeerFd& fd = reader_.fds()[i];
    Spend(kSystemCallUnits);
    if (fd && !MayBeMemory(fd.get())) return MakeError(Errc::kPermissionDenied, "a descriptor that is not of memory (a socket, a file, …)");
  }
  return {};
}

Status Session::HandleFrame(Frame frame) {
  const std::size_t fields = CountFields(frame.payload);
  SpendOnMessage(frame.payload.size(), frame.fds.size());
  Spend(fields);
  if (fields > kMaxFields) return MakeError(Errc::kProtocol, "a message of more than " + std::to_string(kMaxFields) + " fields");
  kvmwire::ClientMessage message;
  if (!message.ParseFromString(frame.payload)) return MakeError(Errc::kProtocol, "a message that can't be parsed");
  DiscardUnknownFields(message);
  if (frame.lost_fds) return broker_.HandleWithoutDescriptors(id_, message, *frame.lost_fds);
  return broker_.Handle(id_, std::move(message), std::move(frame.fds));
}

// The time limit of a frame starts with its first byte; further bytes do not extend it.
void Session::NoteFrameProgress(bool frame_ended) {
  if (!reader_.InsideFrame()) {
    frame_began_ = SteadyTime::max();
  } else if (frame_ended || frame_began_ == SteadyTime::max()) {
    frame_began_ = steady_clock::now();
  }
}

void Session::Drop(const Error& error) {
  const LogScope scope(credentials_.uid);
  ++broker_.protocol_errors;
  LogLimited(LogLevel::kWarn, "client_dropped",
             {{"client", id_}, {"pid", credentials_.pid}, {"uid", credentials_.uid}, {"reason", error.ToString()}});
  Close(error.ToString());
}

bool Session::HungUp() const { return closed_ || HasHungUp(const_cast<Socket&>(socket_).native_handle()); }

void Session::WaitForProcess(int pidfd) {
  if (pidfd < 0) return;
  boost::system::error_code error;
  process_.assign(pidfd, error);
  if (error) return;
  process_.async_wait(asio::posix::stream_descriptor::wait_read, [weak = weak_from_this()](const boost::system::error_code& failed) {
    const std::shared_ptr<Session> self = weak.lock();
    if (self && !failed) self->Close("", /*died=*/true);
  });
}

void Session::Send(const kvmwire::ServerMessage& message, const std::vector<int>& fds) {
  if (TrySend(message, fds)) return;
  const Error lack = OutOfDescriptors(EMFILE);
  LogLimited(LogLevel::kError, "out_of_descriptors",
             {{"what", "for an answer"}, {"client", id_}, {"reason", lack.ToString()}, {"raise", "LimitNOFILE= of kvmd's unit"}});
  AnswerInstead(message, MakeError(Errc::kResourceExhausted, "kvmd is " + lack.ToString()));
  // Without the registry the client can't work; it reconnects after a pause.
  if (message.has_hello_reply()) CloseLater("kvmd is " + lack.ToString());
}

bool Session::TrySend(const kvmwire::ServerMessage& message, const std::vector<int>& fds) {
  if (closed_ || closing_) return true;
  const std::string payload = message.SerializeAsString();
  SpendOnMessage(payload.size(), fds.size());
  Status sent;
  if (fds.empty()) {
    sent = writer_.Append(payload);
  } else if (const Result<bool> done = writer_.Send(socket_.native_handle(), payload, fds); !done) {
    sent = done.error();
  }
  if (!sent && sent.error().code == Errc::kResourceExhausted) return false;
  if (!sent && sent.error().code == Errc::kInvalidArgument) {
    LogLimited(LogLevel::kError, "answer_too_large", {{"client", id_}, {"reason", sent.error().ToString()}});
    AnswerInstead(message, MakeError(Errc::kResourceExhausted, "kvmd's answer does not fit: " + sent.error().ToString()));
    return true;
  }
  if (!sent) {  // the connection has ended
    CloseLater("");
    return true;
  }
  if (QueueOverLimit()) Flush();
  const LogScope scope(credentials_.uid);
  if (QueueOverLimit()) {
    LogLimited(LogLevel::kWarn, "client_too_slow",
               {{"client", id_},
                {"pid", credentials_.pid},
                {"queued_bytes", std::uint64_t{writer_.queued_bytes()}},
                {"queued_fds", std::uint64_t{writer_.queued_fds()}}});
    CloseLater("too slow: it does not read what it is sent (--max-queue-bytes)");
    return true;
  }
  if (!reading_ || writer_.queued_fds() > 0) Flush();
  if (!NoteLoad()) {
    const std::string why = loads_.WhyTooManyBytes(credentials_.uid);
    LogLimited(LogLevel::kWarn, "client_too_slow",
               {{"client", id_}, {"pid", credentials_.pid}, {"uid", credentials_.uid}, {"reason", why}});
    CloseLater("too slow: " + why);
  }
  return true;
}

// A request is answered, with the error if there is one; an announcement that can't be made is
// skipped.
void Session::AnswerInstead(const kvmwire::ServerMessage& message, const Error& error) {
  if (message.request_id() == 0 || message.has_error()) return;
  kvmwire::ServerMessage instead;
  instead.set_request_id(message.request_id());
  instead.mutable_error()->set_code(static_cast<std::uint32_t>(error.code));
  instead.mutable_error()->set_message(error.ToString());
  static_cast<void>(TrySend(instead, {}));
}

bool Session::TakesAnnouncements() const {
  return !closed_ && !closing_ && !KeptWaiting() && writer_.queued_fds() == 0 && writer_.queued_bytes() <= kPauseBytes;
}

bool Session::QueueOverLimit() const { return writer_.queued_bytes() > config_.max_queue_bytes || writer_.queued_fds() > kMaxQueuedFds; }

// False: the connections of its user hold too much, this one's part included.
bool Session::NoteLoad() {
  const Load now =
      closed_ || closing_ ? Load{} : Load{writer_.queued_bytes() + reader_.held_bytes(), writer_.queued_fds() + reader_.held_fds()};
  const bool grown = now.bytes > load_.bytes && now.bytes > kSmallLoad;
  loads_.Change(credentials_.uid, std::exchange(load_, now), now);
  return !grown || !loads_.TooManyBytes(credentials_.uid);
}

void Session::Flush() {
  if (closed_ || wait_writable_) return;
  Result<bool> drained = writer_.Drain(socket_.native_handle());
  if (!drained) return CloseLater("");
  static_cast<void>(NoteLoad());
  if (*drained) {
    said_held_back_ = false;
    return;
  }
  FlushLater();
}

void Session::FlushLater() {
  using HeldBack = FrameWriter::HeldBack;
  wait_writable_ = true;
  const auto flush = [self = shared_from_this()](const boost::system::error_code& error) {
    self->wait_writable_ = false;
    if (error || self->closed_) return;
    self->Flush();
    self->GoOnAnnouncing();
  };
  if (writer_.held_back() == HeldBack::kNo) return socket_.async_wait(Socket::wait_write, flush);
  if (writer_.held_back() == HeldBack::kKernel && !std::exchange(said_held_back_, true)) {
    LogLimited(LogLevel::kWarn, "descriptors_in_flight",
               {{"client", id_}, {"reason", "kvmd's user has as many in flight as its RLIMIT_NOFILE allows; waiting until they are read"}});
  }
  again_.expires_after(writer_.held_back() == HeldBack::kReader ? kReaderPause : kKernelPause);
  again_.async_wait(flush);
}

// Deferred, since the broker may be inside a call that uses this client.
void Session::CloseLater(std::string reason) {
  if (closed_ || closing_) return;
  closing_ = true;
  static_cast<void>(NoteLoad());  // its part is over, and no reason to end others
  asio::post(socket_.get_executor(), [self = shared_from_this(), reason = std::move(reason)] { self->Close(reason); });
}

void Session::Close(const std::string& reason, bool died) {
  if (closed_) return;
  const LogScope scope(credentials_.uid);
  closed_ = true;
  if (!reason.empty() && !died) {
    kvmwire::ServerMessage message;
    message.mutable_goodbye()->set_reason(reason.substr(0, kMaxReasonBytes));
    if (writer_.Append(message.SerializeAsString())) static_cast<void>(writer_.Drain(socket_.native_handle()));
  }
  boost::system::error_code ignored;
  LetGoOfProcess();
  again_.cancel();
  pause_.cancel();
  if (UniqueFd left(socket_.is_open() ? socket_.release(ignored) : -1); left && !ignored)
    closer_.CloseSocket(credentials_.uid, std::move(left));
  reader_ = FrameReader();
  static_cast<void>(NoteLoad());
  broker_.Leave(id_, died);
  ended_(id_);
}

bool Session::HelloOverdue(SteadyTime now) const {
  return now - connected_at_ > std::chrono::milliseconds(config_.hello_timeout_ms) && !broker_.Greeted(id_);
}

bool Session::FrameOverdue(SteadyTime now) const {
  return !paused_ && !backlog_ && frame_began_ < now && now - frame_began_ > std::chrono::milliseconds(config_.frame_timeout_ms);
}

void Session::DropOverdue(SteadyTime now) {
  if (closed_) return;
  if (HelloOverdue(now)) return Drop(MakeError(Errc::kDeadlineExceeded, "no hello in time (--hello-timeout-ms)"));
  Drop(MakeError(Errc::kDeadlineExceeded, "the rest of a message did not come in time (--frame-timeout-ms)"));
}

}  // namespace kvm::daemon
