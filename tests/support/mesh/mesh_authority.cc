#include "tests/support/mesh/mesh_authority.h"

#include <fstream>

#include "proto/base/text_files.h"
#include "tests/catch.h"

namespace kvm::test {

MeshAuthority::MeshAuthority() {
  const std::time_t now = std::time(nullptr);
  const auto made = ctl::MakeAuthority("test", {now - 7200, now + 7200});
  KVM_REQUIRE_OK(made);
  authority_ = *made;
  std::ofstream(authority_file()) << authority_.certificate;
}

void MeshAuthority::Issue(const std::string& domain, const std::string& node, std::time_t valid_for) const {
  const std::time_t now = std::time(nullptr);
  const auto made = ctl::MakeNodeCertificate(authority_, domain, node, {now - 3600, now + valid_for});
  KVM_REQUIRE_OK(made);
  std::ofstream(certificate_file(node)) << made->certificate;
  std::ofstream(key_file(node)) << made->key;
}

void MeshAuthority::Revoke(const std::string& node, std::time_t valid_for) {
  std::vector<std::string> certificates;
  if (!node.empty()) {
    const auto text = ReadTextFile(certificate_file(node));
    KVM_REQUIRE_OK(text);
    certificates.push_back(*text);
  }
  const std::time_t now = std::time(nullptr);
  const auto made = ctl::MakeRevocationList(authority_, list_, certificates, {now - 7200, now + valid_for});
  KVM_REQUIRE_OK(made);
  list_ = *made;
  std::ofstream(list_file()) << list_;
}

std::vector<std::string> MeshAuthority::Options(const std::string& domain, const std::string& node, std::time_t valid_for) const {
  Issue(domain, node, valid_for);
  return {"--tls-ca", authority_file(), "--tls-cert", certificate_file(node), "--tls-key", key_file(node)};
}

std::vector<std::string> MeshAuthority::Options(const std::string& domain, const std::string& node, const MeshAuthority& trusted) const {
  std::vector<std::string> out = Options(domain, node);
  out[1] = trusted.authority_file();
  return out;
}

}  // namespace kvm::test
