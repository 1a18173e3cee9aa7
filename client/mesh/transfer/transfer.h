// Transfer: how the mesh processes of two nodes exchange messages and blocks.
//
// Two rules hold for every implementation, because blocks are sent from and received into memory
// that other processes read:
// - Send and ReceivePayload end only when the transfer does not use the caller's memory any more,
//   whether they succeeded, failed or were too late. A late or half payload can't touch memory that
//   has been given to another block.
// - After an error a channel is closed for good, so that no later message can be taken for an
//   earlier one.
// Bytes are sent by messages and never by remote access to memory: a peer gets no right to read or
// write memory of this process.
//
// Coroutines of one io_context, which makes the progress; an implementation waits for descriptors
// there and never polls. One Send or Receive at a time on a channel.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "kvm/error.h"

namespace kvm::mesh {

using Time = std::chrono::steady_clock::time_point;
template <class T>
using Awaitable = boost::asio::awaitable<T>;

// How long an operation may take. `stall` bounds the time without progress, so that a large payload
// over a slow link is not cut off while its bytes arrive. kProgressBytes, or the rest if that is
// less, count as progress; a peer that sends single bytes makes none.
struct Limits {
  Limits(Time by) : deadline(by) {}  // no other limit
  Limits(Time by, std::chrono::milliseconds without_progress) : deadline(by), stall(without_progress) {}

  Time deadline;
  std::chrono::milliseconds stall = std::chrono::hours(1);

  static constexpr std::size_t kProgressBytes = std::size_t{64} << 10;
};

struct Received {
  std::string message;
  std::uint64_t payload_bytes = 0;  // to be taken with ReceivePayload before the next Receive
};

class Channel {
 public:
  virtual ~Channel() = default;
  // Before anything else. Authenticates both ends if the transfer is encrypted; without encryption
  // it does nothing. kPermissionDenied: the peer's certificate or ours was refused. The errors of
  // Send.
  virtual Awaitable<Status> Handshake(Time deadline) = 0;
  // Whether the peer has proven to be this node of this domain. True of every peer if the transfer
  // is not encrypted. False before Handshake.
  virtual bool IsNode(const std::string& domain, const std::string& node) const = 0;
  // kInvalidArgument: over a limit of mesh_frame.h. kDeadlineExceeded: too late, or no progress.
  // kUnavailable: the peer has closed the channel, or the connection has failed.
  virtual Awaitable<Status> Send(const std::string& message, std::span<const std::byte> payload, Limits limits) = 0;
  // The same errors, and kProtocol: no valid frame, or the last payload has not been taken.
  virtual Awaitable<Result<Received>> Receive(Limits limits) = 0;
  // Precondition: into.size() is the payload_bytes of the last Receive.
  virtual Awaitable<Status> ReceivePayload(std::span<std::byte> into, Limits limits) = 0;
  // The payload in memory that is taken as its bytes arrive. kResourceExhausted: there is none.
  virtual Awaitable<Result<std::string>> TakePayload(Limits limits) = 0;
  // Operations under way end with an error, in turns of their own.
  virtual void Close() noexcept = 0;
  virtual bool open() const noexcept = 0;
  // Whether a new request may be sent: open, and the certificates that it was opened with are still
  // valid and in use.
  virtual bool current() const noexcept = 0;
};

class Transfer {
 public:
  virtual ~Transfer() = default;
  // `address`: as the configuration has it. The channel needs a Handshake. kUnavailable,
  // kDeadlineExceeded, kInvalidArgument.
  virtual Awaitable<Result<std::shared_ptr<Channel>>> Connect(std::string address, Time deadline) = 0;
  // The next peer that connects; it needs a Handshake. kCancelled: Stop was called. Other errors
  // are worth another try, after a pause.
  virtual Awaitable<Result<std::shared_ptr<Channel>>> Accept() = 0;
  virtual void Stop() noexcept = 0;
};

}  // namespace kvm::mesh
