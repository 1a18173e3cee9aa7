// kvmd-mesh's settings. Each field is a command line option and a key of the TOML file (config.cc).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "client/mesh/disk/disk_cache.h"
#include "client/mesh/events/node_events.h"
#include "client/mesh/membership/etcd_settings.h"
#include "client/mesh/membership/member.h"
#include "client/mesh/transfer/tls_identity.h"
#include "kvm/error.h"

namespace kvm::mesh {

using PeerConfig = Member;

// How blocks travel. Automatic: over UCX if it works, and may be used; else over TCP.
enum class TransferChoice : std::uint8_t { kTcp, kUcx, kAuto };

struct Config {
  std::string node;  // this node's name
  std::string kvmd_socket = "/run/kvmd/kvmd.sock";
  std::string mesh_socket;  // for this node's workers; empty: DefaultMeshSocket()
  std::string listen = "127.0.0.1:7600";
  std::vector<PeerConfig> peers;
  EtcdSettings etcd;
  TlsFiles tls;  // none: connections are not encrypted
  bool allow_unencrypted = false;
  TransferChoice transfer = TransferChoice::kTcp;
  // Where UCX listens; empty: the address of `listen`, and a port that the kernel chooses
  std::string ucx_listen;
  // TcpTransfer::Listen
  std::string tcp_congestion = "auto";
  // UCX may be used although there are certificates
  bool ucx_unencrypted = false;
  // Whether addresses of other machines are allowed.
  bool any_machine() const noexcept { return tls.all() || allow_unencrypted; }
  std::uint64_t pool_bytes = std::uint64_t{1} << 30;      // of each model and shard
  std::uint64_t staging_bytes = std::uint64_t{64} << 20;  // the same
  std::uint64_t max_block_bytes = std::uint64_t{64} << 20;
  std::uint64_t max_summary_bytes = std::uint64_t{64} << 20;
  std::uint32_t pull_interval_ms = 1000;
  std::uint32_t stall_timeout_ms = 2000;
  std::uint32_t max_connections = 256;
  DiskOptions disk;                 // without a path: there is none
  EventSettings events;             // without an endpoint: nothing is published
  std::uint32_t verify_one_in = 0;  // ClientOptions::verify_one_in
};

// What main should do after parsing.
struct ParsedArguments {
  Config config;
  bool exit = false;  // --help, --version, --check-config or an error: print has been done
  int exit_code = 0;
};
ParsedArguments ParseArguments(int argc, char** argv);

// kInvalidArgument, the option named: a bad name or address, a name twice, an address that is not
// of the loopback without certificates or allow_unencrypted, some of the files of TLS without the
// others, UCX with certificates and without ucx_unencrypted, settings of etcd that contradict each
// other, --disk-path without --disk-bytes, or what CheckEventSettings refuses. The files are not
// read.
[[nodiscard]] Status CheckConfig(const Config& config);

}  // namespace kvm::mesh
