// UcxChannel: a Channel whose messages travel over another one, and whose large payloads over a
// UcxLink, once both ends have agreed on that in their hellos.
//
// Before the hellos, and with a peer without UCX, it does what the other channel does. When a call
// has ended, however it ended, UCX does not use the memory that was given to it any more.
#pragma once

#include <memory>
#include <string>

#include "client/mesh/transfer/stall_guard.h"
#include "client/mesh/transfer/transfer.h"
#include "client/mesh/transfer/ucx_link.h"
#include "client/mesh/transfer/ucx_transfer.h"

namespace kvm::mesh {

class UcxChannel final : public Channel {
 public:
  // `address`: the peer's, at the end that connects.
  UcxChannel(std::shared_ptr<Channel> messages, std::shared_ptr<UcxShared> shared, std::string address = {});
  ~UcxChannel() override;
  UcxChannel(const UcxChannel&) = delete;
  UcxChannel& operator=(const UcxChannel&) = delete;

  Awaitable<Status> Handshake(Time deadline) override { return messages_->Handshake(deadline); }
  bool IsNode(const std::string& domain, const std::string& node) const override { return messages_->IsNode(domain, node); }
  std::string Offer(const std::string& peers) override;
  Awaitable<Status> Use(std::string peers, Time deadline) override;
  Awaitable<Status> SendAll(std::span<const Outgoing> batch, Limits limits) override;
  Awaitable<Result<Received>> Receive(Limits limits) override;
  Awaitable<Status> ReceiveParts(ReceivedParts into, Limits limits, Arrivals* arrivals) override;
  Awaitable<Result<std::string>> TakePayload(Limits limits) override;
  void Close() noexcept override;
  bool open() const noexcept override { return messages_->open(); }
  bool current() const noexcept override { return messages_->current() && !(link_ && link_->ended()); }

 private:
  class InUse;
  // Room for another piece, none under way, the next piece offered: or the link has ended.
  enum class Until : std::uint8_t { kRoom, kSent, kOffered, kReceived };

  bool connecting() const noexcept { return !address_.empty(); }
  Awaitable<Status> SendPieces(std::span<const std::byte> part, Limits limits);
  Awaitable<Status> Fetch(ReceivedParts into, Limits limits);
  // The guard closes the channel if it is too late.
  Awaitable<void> Wait(Until until, Limits limits);
  static bool Busy(const UcxLink& link, Until until) noexcept;
  Error Ended(const char* what);
  Error Fail(Error error);

  const std::shared_ptr<Channel> messages_;
  const std::shared_ptr<UcxShared> shared_;
  const std::string address_;
  const std::shared_ptr<StallGuard> guard_;
  std::shared_ptr<UcxLink> link_;  // null: payloads come with their messages
  bool prefixed_ = false;          // messages begin with the length of a payload over UCX
  std::uint64_t untaken_ = 0;      // bytes of a payload that was announced and not received
};

}  // namespace kvm::mesh
