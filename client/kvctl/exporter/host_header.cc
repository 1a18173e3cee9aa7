#include "client/kvctl/exporter/host_header.h"

#include <algorithm>

#include <boost/algorithm/string/predicate.hpp>
#include <boost/asio/ip/address.hpp>

namespace kvm::ctl {
namespace {

// Without the port: "[::1]:9464" is "[::1]", "kvmd:80" is "kvmd".
std::string_view WithoutPort(std::string_view host) {
  const std::size_t colon = host.rfind(':');
  const bool has_port = colon != host.npos && host.find_first_not_of("0123456789", colon + 1) == host.npos &&
                        (host.find(':') == colon || host[colon - 1] == ']');
  return has_port ? host.substr(0, colon) : host;
}

bool IsAddress(std::string_view name) {
  if (name.starts_with('[') && name.ends_with(']')) name = name.substr(1, name.size() - 2);
  boost::system::error_code error;
  boost::asio::ip::make_address(std::string(name), error);
  return !error;
}

}  // namespace

bool HostIsAllowed(std::string_view host, const std::vector<std::string>& names) {
  const std::string_view name = WithoutPort(host);
  const auto same = [&](std::string_view other) { return boost::algorithm::iequals(name, other); };
  return !name.empty() && (same("localhost") || IsAddress(name) || std::any_of(names.begin(), names.end(), same));
}

}  // namespace kvm::ctl
