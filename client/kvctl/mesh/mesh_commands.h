// The commands of `kvctl mesh`: what this user's kvmd-mesh says about itself and its peers, and
// certificates for the nodes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "client/kvctl/cli/common_options.h"
#include "client/kvctl/views/key_query.h"
#include "proto/mesh/mesh.pb.h"

namespace kvm::ctl {

struct MeshAuthorityOptions {
  std::string directory;
  std::string name = "kvmd-mesh";
  unsigned days = 3650;
};

struct MeshCertificateOptions {
  std::string node;
  std::string domain;  // empty: that of this user by default, uid:UID
  std::string authority_directory;
  std::string directory;  // empty: authority_directory
  unsigned days = 365;
};

struct MeshRevokeOptions {
  std::vector<std::string> certificates;  // files; none: the list is signed anew
  std::string authority_directory;
  unsigned days = 365;
};

struct MeshExplainOptions {
  KeyQueryOptions query;  // empty: the latest joins
  double prefill_blocks_per_s = 0;
  std::uint64_t block_bytes = 0;  // 0: that of the regions that kvmd knows, if they agree
  std::uint32_t min_blocks = 1;
  std::string source_hint;
};

// `socket`: of kvmd-mesh; empty: this user's.
int RunMeshStatus(const CommonOptions& common, const std::string& socket);
int RunMeshPeers(const CommonOptions& common, const std::string& socket);
int RunMeshFind(const CommonOptions& common, const std::string& socket, const KeyQueryOptions& query);
int RunMeshExplain(const CommonOptions& common, const std::string& socket, const MeshExplainOptions& options);
// Neither replaces a file; keys are readable by their owner only.
int RunMeshAuthority(const CommonOptions& common, const MeshAuthorityOptions& options);
int RunMeshCertificate(const CommonOptions& common, const MeshCertificateOptions& options);
// Replaces the list in one step, so that no reader sees half of it.
int RunMeshRevoke(const CommonOptions& common, const MeshRevokeOptions& options);

}  // namespace kvm::ctl
