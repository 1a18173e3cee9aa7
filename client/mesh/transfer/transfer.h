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

struct Received {
  std::string message;
  std::uint64_t payload_bytes = 0;  // to be taken with ReceivePayload before the next Receive
};

class Channel {
 public:
  virtual ~Channel() = default;
  // kInvalidArgument: over a limit of mesh_frame.h. kDeadlineExceeded. kUnavailable: the peer has
  // closed the channel, or the connection has failed.
  virtual Awaitable<Status> Send(const std::string& message, std::span<const std::byte> payload, Time deadline) = 0;
  // The same errors, and kProtocol: no valid frame, or the last payload has not been taken.
  virtual Awaitable<Result<Received>> Receive(Time deadline) = 0;
  // Precondition: into.size() is the payload_bytes of the last Receive.
  virtual Awaitable<Status> ReceivePayload(std::span<std::byte> into, Time deadline) = 0;
  // Operations under way end with an error, in turns of their own.
  virtual void Close() noexcept = 0;
  virtual bool open() const noexcept = 0;
};

class Transfer {
 public:
  virtual ~Transfer() = default;
  // `address`: as the configuration has it. kUnavailable, kDeadlineExceeded, kInvalidArgument.
  virtual Awaitable<Result<std::shared_ptr<Channel>>> Connect(std::string address, Time deadline) = 0;
  // The next peer that connects. kCancelled: Stop was called. Other errors are worth another try,
  // after a pause.
  virtual Awaitable<Result<std::shared_ptr<Channel>>> Accept() = 0;
  virtual void Stop() noexcept = 0;
};

}  // namespace kvm::mesh
