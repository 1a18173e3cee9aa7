// What is configured about etcd.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kvm/error.h"

namespace kvm::mesh {

struct EtcdSettings {
  std::vector<std::string> endpoints;  // URLs of one cluster's members; empty: etcd is not used
  std::string prefix = "/kvmd-mesh/";  // of all keys
  std::string advertise;               // where peers connect; empty: where this node listens
  std::uint32_t lease_ttl_s = 10;
  std::string authority;             // PEM: authorities of etcd's certificate; empty: the system's
  std::string certificate{}, key{};  // PEM: for etcd, if it wants one
  std::string credentials{};         // file with USER:PASSWORD in its first line; empty: none
};

struct EtcdEndpoint {
  std::string url;   // as configured
  std::string host;  // an address (without brackets) or a name
  std::string port;
  bool tls = false;
  // Whether the host is a number, which needs no resolver.
  bool numeric() const;
  bool loopback() const;
};

// "http://HOST[:PORT]" or "https://…"; the port is 2379 if there is none. kInvalidArgument.
[[nodiscard]] Result<EtcdEndpoint> ParseEtcdUrl(const std::string& url);
// kInvalidArgument, the option named. The files are not read.
[[nodiscard]] Status CheckEtcdSettings(const EtcdSettings& settings, bool allow_unencrypted);

}  // namespace kvm::mesh
