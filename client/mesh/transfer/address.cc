#include "client/mesh/transfer/address.h"

#include <charconv>

namespace kvm::mesh {

Result<boost::asio::ip::tcp::endpoint> ParseAddress(const std::string& address) {
  const std::size_t colon = address.rfind(':');
  std::uint16_t port = 0;
  if (colon != std::string::npos) {
    std::string host = address.substr(0, colon);
    if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
    const char* const end = address.data() + address.size();
    const auto [last, wrong] = std::from_chars(address.data() + colon + 1, end, port);
    boost::system::error_code error;
    const boost::asio::ip::address ip = boost::asio::ip::make_address(host, error);
    if (!error && wrong == std::errc() && last == end) return boost::asio::ip::tcp::endpoint(ip, port);
  }
  return MakeError(Errc::kInvalidArgument, "address " + address + ": an IP address and a port are needed, as in 127.0.0.1:7600");
}

}  // namespace kvm::mesh
