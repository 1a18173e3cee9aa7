#include <boost/asio/ip/address.hpp>
#include <charconv>

#include "client/mesh/events/node_events.h"

namespace kvm::mesh {
namespace {

Error Refused(const std::string& option, const std::string& why) { return MakeError(Errc::kInvalidArgument, option + ": " + why); }

bool IsPort(std::string_view port) {
  if (port == "*") return true;
  unsigned value = 0;
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), value);
  return error == std::errc() && end == port.data() + port.size() && value > 0 && value <= 65535;
}

Status CheckEndpoint(const std::string& option, std::string_view endpoint, bool unencrypted) {
  constexpr std::string_view kTcp = "tcp://", kIpc = "ipc:///";
  if (endpoint.starts_with(kIpc) && endpoint.size() > kIpc.size()) return {};
  Error bad = Refused(option, std::string(endpoint) + ": tcp://ADDRESS:PORT or ipc:///PATH is needed");
  const std::size_t colon = endpoint.rfind(':');
  if (!endpoint.starts_with(kTcp) || colon < kTcp.size() || !IsPort(endpoint.substr(colon + 1))) return bad;
  std::string_view host = endpoint.substr(kTcp.size(), colon - kTcp.size());
  if (host.starts_with('[') && host.ends_with(']')) host = host.substr(1, host.size() - 2);
  boost::system::error_code error;
  const auto address = boost::asio::ip::make_address(std::string(host), error);
  if (host != "*" && error) return bad;
  if (unencrypted || (!error && address.is_loopback())) return {};
  return Refused(option, std::string(endpoint) +
                             " can be read from other machines, and events tell the tokens of prompts. They are neither encrypted nor "
                             "authenticated: give --events-unencrypted as well, for a network that you trust");
}

}  // namespace

Status CheckEventSettings(const EventSettings& settings) {
  if (settings.endpoint.empty()) {
    if (!settings.replay.empty()) return Refused("--events-replay", "--events is needed as well");
    if (!settings.model.empty()) return Refused("--events-model", "--events is needed as well");
    if (settings.unencrypted) return Refused("--events-unencrypted", "--events is needed as well");
    return {};
  }
  if (Status good = CheckEndpoint("--events", settings.endpoint, settings.unencrypted); !good) return good;
  if (settings.replay.empty()) return {};
  if (settings.replay == settings.endpoint && !settings.replay.ends_with("*"))
    return Refused("--events-replay", "--events has the same endpoint");
  return CheckEndpoint("--events-replay", settings.replay, settings.unencrypted);
}

}  // namespace kvm::mesh
