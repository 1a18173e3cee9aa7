#include "client/mesh/node/state/config.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>
#include <map>
#include <set>

#include "client/kvctl/cli/completion.h"
#include "client/mesh/membership/etcd_link.h"
#include "client/mesh/transfer/tcp_transfer.h"
#include "proto/mesh/mesh_frame.h"
#include "proto/mesh/mesh_socket.h"

namespace kvm::mesh {
namespace {

constexpr std::uint64_t kLeastSummaryBytes = std::uint64_t{64} << 10;

const std::map<std::string, TransferChoice> kTransfers{
    {"tcp", TransferChoice::kTcp}, {"ucx", TransferChoice::kUcx}, {"auto", TransferChoice::kAuto}};

void Size(CLI::App& app, const std::string& name, std::uint64_t& field, const std::string& help) {
  app.add_option(name, field, help)->transform(CLI::AsSizeValue(false))->default_str(std::to_string(field))->type_name("SIZE");
}

std::vector<std::string> PolicyNames() {
  std::vector<std::string> out;
  out.reserve(std::size(policy::kAllPolicies));
  for (const policy::PolicyKind kind : policy::kAllPolicies) out.emplace_back(policy::PolicyName(kind));
  return out;
}

Status CheckDisk(const Config& config) {
  if (config.disk.path.empty() && config.disk.limit_bytes == 0) return {};
  if (config.disk.path.empty()) return MakeError(Errc::kInvalidArgument, "--disk-bytes: --disk-path is needed as well");
  if (config.disk.path.front() != '/') return MakeError(Errc::kInvalidArgument, "--disk-path: an absolute path is needed");
  if (config.disk.limit_bytes < kLeastDiskBytes)
    return MakeError(Errc::kInvalidArgument, "--disk-bytes: at least " + std::to_string(kLeastDiskBytes) + " are needed with --disk-path");
  return {};
}

Status CheckName(const std::string& option, const std::string& name) {
  if (IsNodeName(name)) return {};
  return MakeError(
      Errc::kInvalidArgument,
      option + ": a name has 1 to 63 printable characters without spaces and '=', and is not \"disk\", which the disk cache is called");
}

Status CheckAddress(const std::string& option, const std::string& address, bool any_machine) {
  const auto at = ParseAddress(address);
  if (!at) return MakeError(Errc::kInvalidArgument, option + ": " + at.error().message);
  if (at->address().is_loopback() || any_machine) return {};
  return MakeError(
      Errc::kInvalidArgument,
      option + ": " + address +
          " is not on this machine, and blocks would travel unencrypted to a peer that is not "
          "authenticated. Give certificates (--tls-ca, --tls-cert, --tls-key), or --allow-unencrypted for a network that you trust");
}

void AddEtcdOptions(CLI::App& app, EtcdSettings& etcd) {
  app.add_option("--etcd", etcd.endpoints, "Find peers through etcd: http://HOST:PORT or https://HOST:PORT of its members, with commas")
      ->delimiter(',')
      ->type_name("URL");
  app.add_option("--etcd-prefix", etcd.prefix, "Beginning of the keys in etcd")->capture_default_str();
  app.add_option("--advertise", etcd.advertise, "Address and port under which peers find this node in etcd; default: those of --listen");
  app.add_option("--etcd-lease-ttl", etcd.lease_ttl_s, "Seconds after which a node that has died leaves etcd's list")
      ->capture_default_str();
  app.add_option("--etcd-ca", etcd.authority, "File with the authorities of etcd's certificate (PEM); default: the system's");
  app.add_option("--etcd-cert", etcd.certificate, "File with a certificate for etcd (PEM), if it wants one");
  app.add_option("--etcd-key", etcd.key, "File with its key (PEM)");
  app.add_option("--etcd-credentials", etcd.credentials, "File with USER:PASSWORD for etcd in its first line");
}

void AddOptions(CLI::App& app, Config& c, std::vector<std::string>& peers) {
  app.add_option("--node", c.node, "This node's name, as its peers' configurations have it")->required();
  app.add_option("--socket", c.kvmd_socket, "kvmd's Unix socket")->capture_default_str();
  app.add_option("--mesh-socket", c.mesh_socket, "Unix socket for this node's workers; empty: " + DefaultMeshSocket());
  app.add_option("--listen", c.listen, "Address and port for peers")->capture_default_str();
  app.add_option("--peers", peers, "The other nodes: NAME=ADDRESS:PORT")->type_name("PEER");
  AddEtcdOptions(app, c.etcd);
  app.add_option("--tls-ca", c.tls.authority, "File with the certificates of the authority that peers' certificates are of (PEM)");
  app.add_option("--tls-cert", c.tls.certificate, "File with this node's certificate (PEM); kvctl mesh cert makes one");
  app.add_option("--tls-key", c.tls.key, "File with its key (PEM)");
  app.add_option("--tls-crl", c.tls.revoked, "File with revocation lists of the authorities (PEM); kvctl mesh revoke makes one");
  app.add_flag("--allow-unencrypted", c.allow_unencrypted, "Allow addresses of other machines, without encryption and authentication");
  app.add_option("--transfer", c.transfer, "How blocks travel: tcp, ucx, or auto: over UCX if it works, else over TCP")
      ->transform(CLI::CheckedTransformer(kTransfers))
      ->default_str("tcp");
  app.add_option("--ucx-listen", c.ucx_listen, "Address and port of UCX's connections; empty: the address of --listen, any port");
  app.add_flag("--ucx-unencrypted", c.ucx_unencrypted, "With certificates: allow UCX, over which blocks are not encrypted");
  Size(app, "--pool-size", c.pool_bytes, "Memory for blocks of other nodes, for each model and shard");
  Size(app, "--staging-size", c.staging_bytes, "Memory for blocks that are being sent, for each model and shard");
  Size(app, "--max-block-size", c.max_block_bytes, "The largest block that is sent or received");
  Size(app, "--max-summary-size", c.max_summary_bytes, "The largest summary of keys that is taken from a peer");
  app.add_option("--pull-interval-ms", c.pull_interval_ms, "Pause between two looks at the registry, and at peers' summaries")
      ->check(CLI::Range(10u, 600'000u))
      ->capture_default_str();
  app.add_option("--tcp-congestion", c.tcp_congestion,
                 "TCP's congestion control between nodes: a name, system, or auto: the system's unless that is BBR, which paces blocks");
  app.add_option("--stall-timeout-ms", c.stall_timeout_ms, "A source that sends nothing for so long is left, and another one is asked")
      ->check(CLI::Range(10u, 600'000u))
      ->capture_default_str();
  app.add_option("--max-connections", c.max_connections, "Connections of peers, and of workers")
      ->check(CLI::Range(1u, 65'536u))
      ->capture_default_str();
  app.add_option("--disk-path", c.disk.path, "Directory of the disk cache, which keeps blocks of the host cache; empty: there is none");
  Size(app, "--disk-bytes", c.disk.limit_bytes, "What the files of the disk cache may take");
  Size(app, "--disk-write-rate", c.disk.write_bytes_per_s,
       "Bytes per second that are written to the disk cache at most; 0: without a limit");
  const auto policy = [&c](const std::string& name) { c.disk.policy = *policy::PolicyFromName(name); };
  app.add_option_function<std::string>("--disk-policy", policy, "Which blocks leave a full disk cache; see kvmd --host-cache-policy")
      ->check(CLI::IsMember(PolicyNames()))
      ->default_str(std::string(policy::PolicyName(c.disk.policy)));
  const auto io = [&c](const std::string& name) { c.disk.io = *IoKindFromName(name); };
  app.add_option_function<std::string>("--disk-io", io, "How the disk cache reads and writes; auto: io_uring where the kernel allows it")
      ->check(CLI::IsMember({"auto", "io_uring", "pread"}))
      ->default_str("auto");
  app.add_option("--events", c.events.endpoint,
                 "Publish what this node holds, for routers: tcp://ADDRESS:PORT or ipc:///PATH of a ZeroMQ PUB socket; empty: nothing");
  app.add_option("--events-replay", c.events.replay, "The same of a ROUTER socket, for what a subscriber has missed");
  app.add_option("--events-model", c.events.model, "Publish only blocks of the model of this name");
  app.add_option("--events-blocks", c.events.most_blocks, "Blocks of each model whose tokens are remembered for that")
      ->check(CLI::Range(std::uint64_t{1}, std::uint64_t{1} << 28))
      ->capture_default_str();
  app.add_flag("--events-unencrypted", c.events.unencrypted, "Allow --events on addresses that other machines can read");
  app.add_option("--verify-one-in", c.verify_one_in,
                 "Compare one in so many blocks that are sent with their publishers' checksums, and record those of blocks of other nodes; "
                 "0: none. The number that this node's workers have")
      ->capture_default_str();
}

Result<std::vector<PeerConfig>> SplitPeers(const std::vector<std::string>& peers) {
  std::vector<PeerConfig> out;
  for (const std::string& peer : peers) {
    const std::size_t equals = peer.find('=');
    if (equals == std::string::npos) return MakeError(Errc::kInvalidArgument, "--peers: " + peer + ": NAME=ADDRESS:PORT is needed");
    out.push_back({peer.substr(0, equals), peer.substr(equals + 1)});
  }
  return out;
}

// Peers must be able to connect to what the entry in etcd says.
Status CheckEtcd(const Config& config) {
  if (Status good = CheckEtcdSettings(config.etcd, config.allow_unencrypted); !good) return good;
  if (config.etcd.endpoints.empty()) return {};
  if (!config.etcd.advertise.empty()) {
    const Status good = CheckReachable(config.etcd.advertise, config.any_machine());
    return good ? good : MakeError(Errc::kInvalidArgument, "--advertise: " + good.error().message);
  }
  const auto listen = ParseAddress(config.listen);
  if (listen && listen->address().is_unspecified())
    return MakeError(Errc::kInvalidArgument, "--advertise: --listen " + config.listen + " does not say where peers can connect");
  return {};
}

// Reads the files that the configuration names.
Status CheckFiles(const Config& config) {
  if (config.tls.all()) {
    const Result<std::shared_ptr<TlsIdentity>> identity = TlsIdentity::Load(config.tls, config.node);
    if (!identity) return identity.error();
  }
  const Result<EtcdAccess> etcd = EtcdAccess::Load(config.etcd);
  return etcd ? Status() : Status(etcd.error());
}

}  // namespace

Status CheckConfig(const Config& config) {
  if (Status good = CheckName("--node", config.node); !good) return good;
  if (config.tls.any() && !config.tls.all())
    return MakeError(Errc::kInvalidArgument, "--tls-ca, --tls-cert and --tls-key: all of them or none");
  if (!config.tls.revoked.empty() && !config.tls.any())
    return MakeError(Errc::kInvalidArgument, "--tls-crl: without --tls-ca, --tls-cert and --tls-key there is nothing to revoke");
  if (config.tls.any() && config.allow_unencrypted)
    return MakeError(Errc::kInvalidArgument, "--allow-unencrypted: with --tls-cert every connection is encrypted");
  const bool any_machine = config.any_machine();
  if (Status good = CheckAddress("--listen", config.listen, any_machine); !good) return good;
  std::set<std::string> names{config.node};
  for (const PeerConfig& peer : config.peers) {
    if (Status good = CheckName("--peers", peer.node); !good) return good;
    if (!names.insert(peer.node).second) return MakeError(Errc::kInvalidArgument, "--peers: " + peer.node + " is named twice");
    if (Status good = CheckAddress("--peers", peer.address, any_machine); !good) return good;
  }
  if (config.transfer == TransferChoice::kUcx && config.tls.any() && !config.ucx_unencrypted) {
    return MakeError(
        Errc::kInvalidArgument,
        "--transfer: blocks are not encrypted over UCX. Give --ucx-unencrypted as well, for a network that you trust, or use tcp");
  }
  if (config.transfer != TransferChoice::kTcp && !config.ucx_listen.empty()) {
    if (Status good = CheckAddress("--ucx-listen", config.ucx_listen, any_machine); !good) return good;
  }
  if (Status good = CheckEtcd(config); !good) return good;
  if (Status good = CheckDisk(config); !good) return good;
  if (Status good = CheckEventSettings(config.events); !good) return good;
  if (config.max_block_bytes == 0 || config.max_block_bytes > kMaxPayloadBytes)
    return MakeError(Errc::kInvalidArgument, "--max-block-size: 1 to " + std::to_string(kMaxPayloadBytes) + " bytes");
  if (config.max_summary_bytes < kLeastSummaryBytes || config.max_summary_bytes > kMaxPayloadBytes / 2) {
    return MakeError(Errc::kInvalidArgument, "--max-summary-size: " + std::to_string(kLeastSummaryBytes) + " to " +
                                                 std::to_string(kMaxPayloadBytes / 2) + " bytes");
  }
  return {};
}

ParsedArguments ParseArguments(int argc, char** argv) {
  ParsedArguments out;
  std::vector<std::string> peers;
  bool check = false;
  CLI::App app{"kvmd-mesh: brings KV cache blocks of other nodes to this one", "kvmd-mesh"};
  app.set_version_flag("--version", std::string("kvmd-mesh ") + KVM_VERSION);
  app.set_config("--config", "", "TOML file with the options below, without the dashes in front (peers = [\"b=127.0.0.1:7601\"])");
  app.allow_config_extras(CLI::config_extras_mode::error);
  AddOptions(app, out.config, peers);
  const auto complete = [&app](ctl::Shell shell) {
    std::cout << ctl::CompletionScript(app, shell);
    throw CLI::Success();
  };
  app.add_option_function<ctl::Shell>("--completion", complete, "Print the completion script of a shell: bash, zsh or fish")
      ->transform(CLI::CheckedTransformer(ctl::ShellNames()))
      ->trigger_on_parse()
      ->configurable(false);
  app.add_flag("--check-config", check, "Check options and file, then exit")->configurable(false);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    out.exit = true;
    out.exit_code = app.exit(error, std::cout, std::cerr) == 0 ? 0 : 1;
    return out;
  }
  Result<std::vector<PeerConfig>> split = SplitPeers(peers);
  Status good = split ? Status() : Status(split.error());
  if (split) {
    out.config.peers = std::move(*split);
    good = CheckConfig(out.config);
  }
  if (!good) {
    std::cerr << good.error().message << '\n';
    out.exit = true;
    out.exit_code = 1;
  } else if (check) {
    const Status files = CheckFiles(out.config);
    std::cout << "kvmd-mesh: " << (files ? "configuration is good" : files.error().message) << '\n';
    out.exit = true;
    out.exit_code = files ? 0 : 1;
  }
  if (out.config.mesh_socket.empty()) out.config.mesh_socket = DefaultMeshSocket();
  return out;
}

}  // namespace kvm::mesh
