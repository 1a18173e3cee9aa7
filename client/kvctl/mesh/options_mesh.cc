// Command line of `kvctl mesh`.
#include <CLI/CLI.hpp>
#include <memory>

#include "client/kvctl/mesh/mesh_commands.h"

namespace kvm::ctl {
namespace {

void AddViews(CLI::App& mesh, const CommonOptions& common, Action& action) {
  auto socket = std::make_shared<std::string>();
  const auto add_socket = [socket](CLI::App* command) {
    command->add_option("--mesh-socket", *socket, "kvmd-mesh's Unix socket; default: /run/kvmd-mesh/UID/mesh.sock");
    return command;
  };
  add_socket(mesh.add_subcommand("status", "What this node's kvmd-mesh has served and fetched"))->callback([&common, &action, socket] {
    action = [&common, socket] { return RunMeshStatus(common, *socket); };
  });
  add_socket(mesh.add_subcommand("peers", "The other nodes: whether they answer, their blocks, rates and errors"))
      ->callback([&common, &action, socket] { action = [&common, socket] { return RunMeshPeers(common, *socket); }; });
  auto query = std::make_shared<KeyQueryOptions>();
  CLI::App* find = add_socket(mesh.add_subcommand("find", "Which nodes seem to have the blocks of a prompt"));
  AddKeyOptions(*find, *query);
  find->callback([&common, &action, socket, query] { action = [&common, socket, query] { return RunMeshFind(common, *socket, *query); }; });

  auto explain = std::make_shared<MeshExplainOptions>();
  CLI::App* command = add_socket(mesh.add_subcommand("explain", "What a join would do and why; without keys: what the latest ones did"));
  AddKeyOptions(*command, explain->query);
  command->add_option("--prefill-blocks-per-s", explain->prefill_blocks_per_s, "How fast a worker computes blocks; 0: unknown")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--block-size", explain->block_bytes, "Bytes of a block; default: that of the regions here, if they agree")
      ->transform(CLI::AsSizeValue(false))
      ->type_name("SIZE");
  command->add_option("--min-blocks", explain->min_blocks, "As JoinOptions.min_blocks")->capture_default_str();
  command->add_option("--source-hint", explain->source_hint, "As JoinOptions.source_hint: a node's name");
  command->callback(
      [&common, &action, socket, explain] { action = [&common, socket, explain] { return RunMeshExplain(common, *socket, *explain); }; });
}

}  // namespace

void AddMeshCommands(CLI::App& app, const CommonOptions& common, Action& action) {
  CLI::App& mesh = *app.add_subcommand("mesh", "Blocks of other nodes: state of kvmd-mesh, and certificates for it");
  mesh.require_subcommand(1);
  mesh.fallthrough();
  AddViews(mesh, common, action);

  auto authority = std::make_shared<MeshAuthorityOptions>();
  CLI::App* ca = mesh.add_subcommand("ca", "Makes an authority for a cluster: DIR/ca.pem and DIR/ca.key");
  ca->add_option("DIR", authority->directory, "An existing directory")->required();
  ca->add_option("--name", authority->name, "Its name, for people")->capture_default_str();
  ca->add_option("--days", authority->days, "How long it is valid")->check(CLI::Range(1u, 36'500u))->capture_default_str();
  ca->footer("Keep ca.key off the nodes: its owner can make certificates for every node and domain.");
  ca->callback([&common, &action, authority] { action = [&common, authority] { return RunMeshAuthority(common, *authority); }; });

  auto certificate = std::make_shared<MeshCertificateOptions>();
  CLI::App* cert = mesh.add_subcommand("cert", "Makes a node's certificate: DIR/NODE.pem and DIR/NODE.key");
  cert->add_option("NODE", certificate->node, "The node's name, as kvmd-mesh --node has it")->required();
  cert->add_option("--ca", certificate->authority_directory, "The directory with ca.pem and ca.key")->required();
  cert->add_option("--domain", certificate->domain, "kvmd's domain of the user (kvctl mesh status shows it); default: uid: and this user");
  cert->add_option("--out", certificate->directory, "An existing directory; default: that of --ca");
  cert->add_option("--days", certificate->days, "How long it is valid")->check(CLI::Range(1u, 36'500u))->capture_default_str();
  cert->callback([&common, &action, certificate] { action = [&common, certificate] { return RunMeshCertificate(common, *certificate); }; });

  auto revoked = std::make_shared<MeshRevokeOptions>();
  CLI::App* revoke = mesh.add_subcommand("revoke", "Revokes certificates: adds them to the authority's list, DIR/crl.pem");
  revoke->add_option("CERT", revoked->certificates, "Files of certificates; none: the list is only signed anew");
  revoke->add_option("--ca", revoked->authority_directory, "The directory with ca.pem and ca.key")->required();
  revoke->add_option("--days", revoked->days, "How long the list is valid")->check(CLI::Range(1u, 36'500u))->capture_default_str();
  revoke->footer("Copy crl.pem to all nodes and reload their kvmd-mesh. Once a list is out of date, a node that has it refuses all peers.");
  revoke->callback([&common, &action, revoked] { action = [&common, revoked] { return RunMeshRevoke(common, *revoked); }; });
}

}  // namespace kvm::ctl
