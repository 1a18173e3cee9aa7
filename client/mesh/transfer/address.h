// Addresses of nodes, as configurations and other nodes write them.
#pragma once

#include <boost/asio/ip/tcp.hpp>
#include <string>

#include "kvm/error.h"

namespace kvm::mesh {

// An IP address with a port: "127.0.0.1:7600", "[::1]:7600".
// kInvalidArgument. Names are not resolved: what a name means may change after it was checked.
[[nodiscard]] Result<boost::asio::ip::tcp::endpoint> ParseAddress(const std::string& address);

}  // namespace kvm::mesh
