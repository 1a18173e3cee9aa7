// Member: a node of the mesh, as a configuration or etcd names it, and what its name and address
// must look like.
#pragma once

#include <string>
#include <string_view>

#include "kvm/error.h"

namespace kvm::mesh {

struct Member {
  std::string node;
  std::string address;  // an IP address and a port

  bool operator==(const Member&) const = default;
};

// What the disk cache is called where sources of blocks are listed; no node may be.
inline constexpr std::string_view kDiskName = "disk";

// Whether it has 1 to 63 printable characters without spaces and '=', and is not kDiskName.
bool IsNodeName(std::string_view name) noexcept;
// Whether a peer can be connected to there: an address of one machine, and a port.
// `any_machine`: false allows those of the loopback only. kInvalidArgument.
[[nodiscard]] Status CheckReachable(const std::string& address, bool any_machine);

}  // namespace kvm::mesh
