#include "client/mesh/transfer/ucx_binding.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>

#include <algorithm>
#include <cstring>

namespace kvm::mesh {
namespace {

void PutWord(std::byte* at, std::uint64_t word) noexcept {
  for (unsigned i = 0; i < 8; ++i) at[i] = static_cast<std::byte>(word >> (8 * i));
}

std::uint64_t GetWord(const std::byte* at) noexcept {
  std::uint64_t word = 0;
  for (unsigned i = 0; i < 8; ++i) word |= static_cast<std::uint64_t>(at[i]) << (8 * i);
  return word;
}

}  // namespace

UcxHeaderBytes UcxHeader::Encode() const noexcept {
  UcxHeaderBytes out{};
  PutWord(out.data(), channel);
  PutWord(out.data() + 8, number);
  std::copy(ticket.begin(), ticket.end(), out.begin() + 16);
  return out;
}

std::optional<UcxHeader> UcxHeader::Decode(std::span<const std::byte> bytes) noexcept {
  if (bytes.size() != kUcxHeaderBytes) return std::nullopt;
  UcxHeader out;
  out.channel = GetWord(bytes.data());
  out.number = GetWord(bytes.data() + 8);
  std::copy_n(bytes.begin() + 16, out.ticket.size(), out.ticket.begin());
  return out;
}

Result<UcxBinding> UcxBinding::Make() {
  UcxBinding out;
  std::array<unsigned char, sizeof(out.channel_)> number{};
  if (RAND_bytes(number.data(), number.size()) != 1 || RAND_bytes(out.secret_.data(), out.secret_.size()) != 1)
    return MakeError(Errc::kSystem, "OpenSSL has no random numbers");
  std::memcpy(&out.channel_, number.data(), sizeof(out.channel_));
  return out;
}

Result<UcxBinding> UcxBinding::From(std::uint64_t channel, const std::string& secret) {
  UcxBinding out;
  if (secret.size() != out.secret_.size()) return MakeError(Errc::kProtocol, "a secret for UCX has 32 bytes");
  out.channel_ = channel;
  std::copy(secret.begin(), secret.end(), out.secret_.begin());
  return out;
}

UcxHeader UcxBinding::Header(UcxTicketUse use, std::uint64_t number) const {
  UcxHeader out{channel_, number, {}};
  std::array<std::byte, 9> what{static_cast<std::byte>(use)};
  PutWord(what.data() + 1, number);
  std::array<unsigned char, EVP_MAX_MD_SIZE> mac{};
  unsigned size = 0;
  // On a failure the ticket stays zero, which Matches never takes.
  if (HMAC(EVP_sha256(), secret_.data(), static_cast<int>(secret_.size()), reinterpret_cast<const unsigned char*>(what.data()), what.size(),
           mac.data(), &size) != nullptr) {
    std::memcpy(out.ticket.data(), mac.data(), out.ticket.size());
  }
  return out;
}

bool UcxBinding::Matches(const UcxHeader& header, UcxTicketUse use) const {
  const UcxHeader good = Header(use, header.number);
  return good.ticket != UcxTicket{} && header.channel == channel_ &&
         CRYPTO_memcmp(good.ticket.data(), header.ticket.data(), good.ticket.size()) == 0;
}

}  // namespace kvm::mesh
