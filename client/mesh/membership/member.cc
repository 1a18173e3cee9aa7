#include "client/mesh/membership/member.h"

#include <algorithm>

#include "client/mesh/transfer/address.h"

namespace kvm::mesh {

bool IsNodeName(std::string_view name) noexcept {
  constexpr std::size_t kMaxName = 63;
  return !name.empty() && name.size() <= kMaxName && name != kDiskName &&
         std::all_of(name.begin(), name.end(), [](unsigned char c) { return c > ' ' && c < 127 && c != '='; });
}

Status CheckReachable(const std::string& address, bool any_machine) {
  const auto at = ParseAddress(address);
  if (!at) return at.error();
  const auto refused = [&](const char* why) { return MakeError(Errc::kInvalidArgument, "address " + address + why); };
  if (at->port() == 0) return refused(": a port is needed");
  if (at->address().is_unspecified() || at->address().is_multicast()) return refused(" is not of one machine");
  if (!any_machine && !at->address().is_loopback()) return refused(" is not on this machine, and connections are not encrypted");
  return {};
}

}  // namespace kvm::mesh
