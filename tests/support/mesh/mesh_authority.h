// An authority of a test, and options of kvmd-mesh with certificates of it. The files lie in a
// directory of its own.
#pragma once

#include <ctime>
#include <string>
#include <vector>

#include "client/kvctl/mesh/certificate_maker.h"
#include "tests/support/process/temp_dir.h"

namespace kvm::test {

class MeshAuthority {
 public:
  MeshAuthority();

  // --tls-ca, --tls-cert, --tls-key for a node. `valid_for`: seconds from now, negative for one
  // that has expired.
  std::vector<std::string> Options(const std::string& domain, const std::string& node, std::time_t valid_for = 3600) const;
  // The same with the node's certificate of this authority, and another authority for its peers.
  std::vector<std::string> Options(const std::string& domain, const std::string& node, const MeshAuthority& trusted) const;
  // Writes a certificate to the files that Options names for `node`, in place of that there.
  void Issue(const std::string& domain, const std::string& node, std::time_t valid_for = 3600) const;

  // Writes a list with all certificates that were revoked, and the one that `node` has now; empty:
  // no further one.
  void Revoke(const std::string& node = "", std::time_t valid_for = 3600);

  std::string list_file() const { return dir_ / "crl.pem"; }
  std::string authority_file() const { return dir_ / "ca.pem"; }
  std::string certificate_file(const std::string& node) const { return dir_ / (node + ".pem"); }
  std::string key_file(const std::string& node) const { return dir_ / (node + ".key"); }

 private:
  TempDir dir_;
  ctl::IssuedCertificate authority_;
  std::string list_;
};

}  // namespace kvm::test
