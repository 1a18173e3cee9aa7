#include "client/mesh/node/config.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>
#include <set>

#include "client/kvctl/cli/completion.h"
#include "client/mesh/node/disk_source.h"
#include "client/mesh/transfer/tcp_transfer.h"
#include "proto/mesh/mesh_frame.h"
#include "proto/mesh/mesh_socket.h"

namespace kvm::mesh {
namespace {

constexpr std::uint64_t kLeastSummaryBytes = std::uint64_t{64} << 10;

void Size(CLI::App& app, const std::string& name, std::uint64_t& field, const std::string& help) {
  app.add_option(name, field, help)->transform(CLI::AsSizeValue(false))->default_str(std::to_string(field))->type_name("SIZE");
}

std::vector<std::string> PolicyNames() {
  std::vector<std::string> out;
  for (const policy::PolicyKind kind : policy::kAllPolicies) out.emplace_back(policy::PolicyName(kind));
  return out;
}

Status CheckDisk(const Config& config) {
  if (config.disk.path.empty() && config.disk.limit_bytes == 0) return {};
  if (config.disk.path.empty()) return MakeError(Errc::kInvalidArgument, "--disk-bytes: --disk-path is needed as well");
  if (config.disk.path.front() != '/') return MakeError(Errc::kInvalidArgument, "--disk-path: an absolute path is needed");
  if (config.disk.limit_bytes < kLeastDiskBytes)
    return MakeError(Errc::kInvalidArgument, "--disk-bytes: at least " + std::to_string(kLeastDiskBytes) + " are needed with --disk-path");
  for (const PeerConfig& peer : config.peers)
    if (peer.node == DiskSource::kName) return MakeError(Errc::kInvalidArgument, "--peers: \"disk\" is the disk cache, and no node");
  return {};
}

Status CheckName(const std::string& option, const std::string& name) {
  const bool good = !name.empty() && name.size() <= 63 &&
                    std::all_of(name.begin(), name.end(), [](unsigned char c) { return c > ' ' && c < 127 && c != '='; });
  if (good) return {};
  return MakeError(Errc::kInvalidArgument, option + ": a name has 1 to 63 printable characters without spaces and '='");
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

void AddOptions(CLI::App& app, Config& c, std::vector<std::string>& peers) {
  app.add_option("--node", c.node, "This node's name, as its peers' configurations have it")->required();
  app.add_option("--socket", c.kvmd_socket, "kvmd's Unix socket")->capture_default_str();
  app.add_option("--mesh-socket", c.mesh_socket, "Unix socket for this node's workers; empty: " + DefaultMeshSocket());
  app.add_option("--listen", c.listen, "Address and port for peers")->capture_default_str();
  app.add_option("--peers", peers, "The other nodes: NAME=ADDRESS:PORT")->type_name("PEER");
  app.add_option("--tls-ca", c.tls.authority, "File with the certificates of the authority that peers' certificates are of (PEM)");
  app.add_option("--tls-cert", c.tls.certificate, "File with this node's certificate (PEM); kvctl mesh cert makes one");
  app.add_option("--tls-key", c.tls.key, "File with its key (PEM)");
  app.add_option("--tls-crl", c.tls.revoked, "File with revocation lists of the authorities (PEM); kvctl mesh revoke makes one");
  app.add_flag("--allow-unencrypted", c.allow_unencrypted, "Allow addresses of other machines, without encryption and authentication");
  Size(app, "--pool-size", c.pool_bytes, "Memory for blocks of other nodes, for each model and shard");
  Size(app, "--staging-size", c.staging_bytes, "Memory for blocks that are being sent, for each model and shard");
  Size(app, "--max-block-size", c.max_block_bytes, "The largest block that is sent or received");
  Size(app, "--max-summary-size", c.max_summary_bytes, "The largest summary of keys that is taken from a peer");
  app.add_option("--pull-interval-ms", c.pull_interval_ms, "Pause between two looks at the registry, and at peers' summaries")
      ->check(CLI::Range(10u, 600'000u))
      ->capture_default_str();
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

}  // namespace

Status CheckConfig(const Config& config) {
  if (Status good = CheckName("--node", config.node); !good) return good;
  if (config.tls.any() && !config.tls.all())
    return MakeError(Errc::kInvalidArgument, "--tls-ca, --tls-cert and --tls-key: all of them or none");
  if (!config.tls.revoked.empty() && !config.tls.any())
    return MakeError(Errc::kInvalidArgument, "--tls-crl: without --tls-ca, --tls-cert and --tls-key there is nothing to revoke");
  if (config.tls.any() && config.allow_unencrypted)
    return MakeError(Errc::kInvalidArgument, "--allow-unencrypted: with --tls-cert every connection is encrypted");
  const bool any_machine = config.tls.all() || config.allow_unencrypted;
  if (Status good = CheckAddress("--listen", config.listen, any_machine); !good) return good;
  std::set<std::string> names{config.node};
  for (const PeerConfig& peer : config.peers) {
    if (Status good = CheckName("--peers", peer.node); !good) return good;
    if (!names.insert(peer.node).second) return MakeError(Errc::kInvalidArgument, "--peers: " + peer.node + " is named twice");
    if (Status good = CheckAddress("--peers", peer.address, any_machine); !good) return good;
  }
  if (Status good = CheckDisk(config); !good) return good;
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
  } else if (check && out.config.tls.all()) {
    const Result<std::shared_ptr<TlsIdentity>> identity = TlsIdentity::Load(out.config.tls, out.config.node);
    std::cout << "kvmd-mesh: " << (identity ? "configuration is good" : identity.error().message) << '\n';
    out.exit = true;
    out.exit_code = identity ? 0 : 1;
  } else if (check) {
    std::cout << "kvmd-mesh: configuration is good\n";
    out.exit = true;
  }
  if (out.config.mesh_socket.empty()) out.config.mesh_socket = DefaultMeshSocket();
  return out;
}

}  // namespace kvm::mesh
