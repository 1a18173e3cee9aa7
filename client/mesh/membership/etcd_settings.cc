#include "client/mesh/membership/etcd_settings.h"

#include <algorithm>
#include <boost/asio/ip/address.hpp>

namespace kvm::mesh {
namespace {

constexpr std::size_t kMaxEndpoints = 16, kMaxUrl = 512, kMaxPrefix = 256;
constexpr std::uint32_t kMinTtl = 2, kMaxTtl = 3600;

bool IsPrintable(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](unsigned char c) { return c > ' ' && c <= '~'; });
}

}  // namespace

bool EtcdEndpoint::numeric() const {
  boost::system::error_code error;
  boost::asio::ip::make_address(host, error);
  return !error;
}

bool EtcdEndpoint::loopback() const {
  boost::system::error_code error;
  const auto address = boost::asio::ip::make_address(host, error);
  return error ? host == "localhost" : address.is_loopback();
}

Result<EtcdEndpoint> ParseEtcdUrl(const std::string& url) {
  Error refused = MakeError(Errc::kInvalidArgument, url.substr(0, kMaxUrl) + ": http://HOST:PORT or https://HOST:PORT is needed");
  EtcdEndpoint out;
  out.url = url;
  out.tls = url.starts_with("https://");
  if ((!out.tls && !url.starts_with("http://")) || url.size() > kMaxUrl || !IsPrintable(url)) return refused;
  std::string rest = url.substr(out.tls ? 8 : 7);
  if (rest.ends_with('/')) rest.pop_back();
  if (rest.find_first_of("/?#@") != std::string::npos) return refused;
  out.port = "2379";
  const std::size_t bracket = rest.rfind(']'), colon = rest.rfind(':');
  if (colon != std::string::npos && (bracket == std::string::npos || colon > bracket)) {
    out.port = rest.substr(colon + 1);
    rest.resize(colon);
  }
  const bool number = !out.port.empty() && out.port.size() <= 5 &&
                      std::all_of(out.port.begin(), out.port.end(), [](char c) { return c >= '0' && c <= '9'; }) &&
                      std::stoul(out.port) >= 1 && std::stoul(out.port) <= 65'535;
  const bool bracketed = rest.size() > 2 && rest.front() == '[' && rest.back() == ']';
  out.host = bracketed ? rest.substr(1, rest.size() - 2) : rest;
  const bool colons = out.host.find(':') != std::string::npos;
  if (!number || out.host.empty() || colons != bracketed || (bracketed && !out.numeric())) return refused;
  return out;
}

Status CheckEtcdSettings(const EtcdSettings& settings, bool allow_unencrypted) {
  const auto refused = [](const std::string& why) { return MakeError(Errc::kInvalidArgument, why); };
  const bool any_file =
      !settings.authority.empty() || !settings.certificate.empty() || !settings.key.empty() || !settings.credentials.empty();
  if (settings.endpoints.empty()) {
    if (any_file || !settings.advertise.empty()) return refused("--advertise and --etcd-…: there is no --etcd");
    return {};
  }
  if (settings.endpoints.size() > kMaxEndpoints) return refused("--etcd: at most " + std::to_string(kMaxEndpoints) + " addresses");
  bool any_tls = false;
  for (const std::string& url : settings.endpoints) {
    const Result<EtcdEndpoint> endpoint = ParseEtcdUrl(url);
    if (!endpoint) return refused("--etcd: " + endpoint.error().message);
    any_tls = any_tls || endpoint->tls;
    if (!settings.credentials.empty() && !endpoint->tls && !endpoint->loopback() && !allow_unencrypted)
      return refused("--etcd-credentials: the password would travel unencrypted to " + url);
  }
  if (!any_tls && (!settings.authority.empty() || !settings.certificate.empty() || !settings.key.empty()))
    return refused("--etcd-ca, --etcd-cert, --etcd-key: no address of --etcd begins with https://");
  if (settings.certificate.empty() != settings.key.empty()) return refused("--etcd-cert and --etcd-key: both of them or none");
  if (settings.prefix.empty() || settings.prefix.size() > kMaxPrefix || !IsPrintable(settings.prefix))
    return refused("--etcd-prefix: 1 to " + std::to_string(kMaxPrefix) + " printable characters without spaces");
  if (settings.lease_ttl_s < kMinTtl || settings.lease_ttl_s > kMaxTtl)
    return refused("--etcd-lease-ttl: " + std::to_string(kMinTtl) + " to " + std::to_string(kMaxTtl) + " seconds");
  return {};
}

}  // namespace kvm::mesh
