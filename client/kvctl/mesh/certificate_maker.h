// Certificates for the nodes of a small cluster: an authority, and what it signs. Keys are of the
// curve P-256; texts are PEM. Files are written by `kvctl mesh ca`, `cert` and `revoke`.
//
// A cluster that has an authority of its own (cert-manager, step-ca, …) needs none of this: what
// kvmd-mesh wants is the URI of proto/mesh/mesh_identity.h in subjectAltName.
#pragma once

#include <ctime>
#include <span>
#include <string>

#include "kvm/error.h"

namespace kvm::ctl {

struct Validity {
  std::time_t from = 0;
  std::time_t until = 0;
};

struct IssuedCertificate {
  std::string certificate;
  std::string key;
};

// May sign certificates of nodes, and no further authorities. kSystem: OpenSSL failed, with its
// reason.
[[nodiscard]] Result<IssuedCertificate> MakeAuthority(const std::string& name, Validity validity);

// For both ends of a connection. kInvalidArgument: `authority` is not one, or its key is not its
// own. kSystem.
[[nodiscard]] Result<IssuedCertificate> MakeNodeCertificate(const IssuedCertificate& authority, const std::string& domain,
                                                            const std::string& node, Validity validity);

// The authority's revocation list with what `list` has (empty: nothing) and these certificates,
// signed anew. kInvalidArgument: no authority, or the list or a certificate is not of it. kSystem.
[[nodiscard]] Result<std::string> MakeRevocationList(const IssuedCertificate& authority, const std::string& list,
                                                     std::span<const std::string> certificates, Validity validity);

// How an identity looks, for people: the URI in the first certificate of a PEM text; empty: none.
std::string IdentityIn(const std::string& certificate);

}  // namespace kvm::ctl
