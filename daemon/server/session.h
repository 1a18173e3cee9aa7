// Session: one client's socket. Reads frames and hands them to the broker, writes what the broker
// sends.
//
// A session ends when the client closes, dies (pidfd), breaks the protocol or does not read, and
// when the server ends it. The broker is told once. The object lives as long as one of its
// coroutines does.
//
// What arrives is handled in turns (fair_turns.h): a session that can be read from waits until its
// user has one, and stops when the turn's work is done, in the middle of a message if need be.
//
// kvmd does not read from a client that does not take its replies, so the memory that the client
// can take is bounded; announcements of others come on top, up to --max-queue-bytes.
//
// A client that sends descriptors of something else than memory is dropped: their close may wait
// for somebody else (descriptor_closer.h).
//
// If kvmd itself lacks something (descriptors, the kernel's permission to have more in flight), or
// an answer is too large for one message, the connection does not end: the message waits, or the
// request is answered with the error.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include <boost/asio/io_context.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>

#include "daemon/broker/broker.h"
#include "daemon/server/fair_turns.h"
#include "daemon/server/user_loads.h"
#include "proto/base/descriptor_closer.h"
#include "proto/wire/frame.h"

namespace kvm::daemon {

class Session final : public Connection, public std::enable_shared_from_this<Session> {
 public:
  using Socket = boost::asio::local::stream_protocol::socket;
  using Ended = std::function<void(ClientId)>;

  // All but the socket outlive the session.
  Session(Socket socket, const Config& config, Broker& broker, FairTurns& turns, UserLoads& loads, DescriptorCloser& closer, Ended ended);
  ~Session() override;

  void Start();
  ClientId id() const noexcept { return id_; }

  void Send(const kvmwire::ServerMessage& message, const std::vector<int>& fds) override;
  bool TrySend(const kvmwire::ServerMessage& message, const std::vector<int>& fds) override;
  bool TakesAnnouncements() const override;
  std::size_t queued_bytes() const override { return writer_.queued_bytes(); }
  bool HungUp() const override;
  void Disconnect() override { Close("", /*died=*/false); }

  // Sends a goodbye if the socket accepts it, then closes. `died`: the process has ended.
  void Close(const std::string& reason, bool died = false);
  // Whether its hello or the rest of a frame should have come by now.
  bool Overdue(SteadyTime now) const { return !closed_ && (HelloOverdue(now) || FrameOverdue(now)); }
  void DropOverdue(SteadyTime now);
  bool drained() const noexcept { return writer_.queued_bytes() == 0; }

 private:
  void WaitForTurn();
  void WaitUntilTaken();
  void AskForTurn();
  bool TakeTurn(const WorkBudget& budget);
  void GoOnAnnouncing();
  void WaitForProcess(int pidfd);
  void LetGoOfProcess();
  Status ReadAvailable(const WorkBudget& budget);
  Status CheckDescriptors(std::size_t known) const;
  void NoteFrameProgress(bool frame_ended);
  void Drop(const Error& error);
  Status HandleFrame(Frame frame);
  void AnswerInstead(const kvmwire::ServerMessage& message, const Error& error);
  bool Paused() const;
  void FlushLater();
  bool KeptWaiting() const;
  bool QueueOverLimit() const;
  bool NoteLoad();
  bool HelloOverdue(SteadyTime now) const;
  bool FrameOverdue(SteadyTime now) const;
  void Flush();
  void CloseLater(std::string reason);

  Socket socket_;
  boost::asio::posix::stream_descriptor process_;
  const Config& config_;
  Broker& broker_;
  FairTurns& turns_;
  UserLoads& loads_;
  DescriptorCloser& closer_;
  const Ended ended_;
  Credentials credentials_;
  ClientId id_ = 0;
  FrameReader reader_;
  FrameWriter writer_;
  bool closed_ = false;
  bool closing_ = false;
  bool backlog_ = false;        // there may be more to handle before anything is read
  Load load_;                   // as the user's loads have it
  bool paused_ = false;         // not read from until it takes its replies
  bool reading_ = false;        // inside ReadAvailable: replies are flushed once at its end
  bool wait_writable_ = false;  // until it is writable, or it is time to try again
  bool said_held_back_ = false;
  boost::asio::steady_timer again_, pause_;
  SteadyTime connected_at_;
  SteadyTime frame_began_ = SteadyTime::max();  // of the frame that has arrived in part; max: none
};

}  // namespace kvm::daemon
