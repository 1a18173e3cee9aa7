// Transfer: how the mesh processes of two nodes exchange messages and blocks.
//
// Two rules hold for every implementation, because blocks are sent from and received into memory
// that other processes read:
// - Send and ReceivePayload end only when the transfer does not use the caller's memory any more,
//   whether they succeeded, failed or were too late. A late or half payload can't touch memory that
//   has been given to another block.
// - After an error a channel is closed for good, so that no later message can be taken for an
//   earlier one.
// Bytes are sent by messages: a peer gets no right to read or write memory of this process,
// except over RDMA (docs/MESH.md).
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
#include <utility>
#include <vector>

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

// A payload may lie in several places of memory, one behind the other on the wire.
using SentParts = std::vector<std::span<const std::byte>>;
using ReceivedParts = std::span<const std::span<std::byte>>;

struct Outgoing {
  std::string message;
  SentParts payload{};
};

// Told of a payload while it is received, so that its bytes can be read while they are in the
// cache.
class Arrivals {
 public:
  virtual ~Arrivals() = default;
  // The first `bytes` of the payload are where they belong, and are not written again. More each
  // time. The last ones may not be told of.
  virtual void Arrived(std::size_t bytes) noexcept = 0;
};

template <class Parts>
std::uint64_t BytesOf(const Parts& parts) noexcept {
  std::uint64_t bytes = 0;
  for (const auto& part : parts) bytes += part.size();
  return bytes;
}

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
  // Payloads may take another way than messages if both ends have it. What the hello of this end
  // says of that, empty: nothing. `peers`: what the peer's has said, empty at the end that says it
  // first.
  virtual std::string Offer(const std::string& peers) {
    static_cast<void>(peers);
    return {};
  }
  // After both hellos, at both ends; `peers`: what the peer's has said. That the other way does not
  // work is no error. kProtocol: `peers` is no offer.
  virtual Awaitable<Status> Use(std::string peers, Time deadline) {
    static_cast<void>(peers), static_cast<void>(deadline);
    co_return Status();
  }
  // kInvalidArgument: over a limit of mesh_frame.h. kDeadlineExceeded: too late, or no progress.
  // kUnavailable: the peer has closed the channel, or the connection has failed.
  Awaitable<Status> Send(const std::string& message, std::span<const std::byte> payload, Limits limits) {
    const Outgoing one{message, payload.empty() ? SentParts() : SentParts{payload}};
    co_return co_await SendAll(std::span(&one, 1), limits);
  }
  // As one Send after the other, each with these limits, but they may overlap.
  virtual Awaitable<Status> SendAll(std::span<const Outgoing> batch, Limits limits) = 0;
  // The same errors, and kProtocol: no valid frame, or the last payload has not been taken.
  virtual Awaitable<Result<Received>> Receive(Limits limits) = 0;
  // Precondition: the parts have the payload_bytes of the last Receive, and a payload in several
  // parts was sent in parts of the same sizes. `arrivals`: may be null.
  virtual Awaitable<Status> ReceiveParts(ReceivedParts into, Limits limits, Arrivals* arrivals) = 0;
  Awaitable<Status> ReceivePayload(std::span<std::byte> into, Limits limits) {
    co_return co_await ReceiveParts({&into, 1}, limits, nullptr);
  }
  // The payload in memory that is taken as its bytes arrive. kResourceExhausted: there is none.
  virtual Awaitable<Result<std::string>> TakePayload(Limits limits) = 0;
  // Operations under way end with an error, in turns of their own.
  virtual void Close() noexcept = 0;
  virtual bool open() const noexcept = 0;
  // Whether a new request may be sent: open, and the certificates that it was opened with are still
  // valid and in use.
  virtual bool current() const noexcept = 0;

  // The other end, for people: "ADDRESS:PORT"; empty: it has no such address, or has gone already.
  const std::string& remote() const noexcept { return remote_; }
  void SetRemote(std::string remote) { remote_ = std::move(remote); }

 private:
  std::string remote_;
};

// Payloads that went another way than their messages.
struct BulkTotals {
  std::string way = "tcp";  // "ucx"; "tcp": there is no other
  std::uint64_t sent_bytes = 0, received_bytes = 0;
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
  virtual BulkTotals bulk() const { return {}; }
};

}  // namespace kvm::mesh
