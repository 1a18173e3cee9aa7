// UcxBinding: what ties an UCX connection to the channel over which two nodes have authenticated
// each other, and each piece of a payload to the connection.
//
// The accepting node makes a channel number and a secret for one channel, and tells them over that
// channel alone. Everything that is sent over UCX carries the number and a ticket: an HMAC, under
// the secret, of what it is and of its place in the sequence. Each ticket is taken once. So a
// process that does not know the secret can neither ask for, nor send, anything that is taken; the
// secret itself never travels over UCX.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "kvm/error.h"

namespace kvm::mesh {

// What a ticket is for.
enum class UcxTicketUse : std::uint8_t {
  kOpen = 1,         // the connecting node's first message
  kOpened = 2,       // the answer
  kToAccepting = 3,  // a piece of a payload, to the node that has accepted the channel
  kToConnecting = 4,
};

using UcxTicket = std::array<std::byte, 16>;

// header = u64 channel | u64 number | ticket (LE). Each message over UCX has one.
inline constexpr std::size_t kUcxHeaderBytes = 32;
using UcxHeaderBytes = std::array<std::byte, kUcxHeaderBytes>;
struct UcxHeader {
  std::uint64_t channel = 0;
  std::uint64_t number = 0;  // of the piece, counted through all payloads of one direction
  UcxTicket ticket{};

  UcxHeaderBytes Encode() const noexcept;
  // Empty: another length.
  static std::optional<UcxHeader> Decode(std::span<const std::byte> bytes) noexcept;
};

class UcxBinding {
 public:
  // New random values. kSystem: there are none.
  [[nodiscard]] static Result<UcxBinding> Make();
  // kProtocol: the secret has another length.
  [[nodiscard]] static Result<UcxBinding> From(std::uint64_t channel, const std::string& secret);

  std::uint64_t channel() const noexcept { return channel_; }
  std::string secret() const { return {reinterpret_cast<const char*>(secret_.data()), secret_.size()}; }

  UcxHeader Header(UcxTicketUse use, std::uint64_t number) const;
  // In a time that does not depend on the ticket.
  bool Matches(const UcxHeader& header, UcxTicketUse use) const;

 private:
  std::uint64_t channel_ = 0;
  std::array<unsigned char, 32> secret_{};
};

}  // namespace kvm::mesh
