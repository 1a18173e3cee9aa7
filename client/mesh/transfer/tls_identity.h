// TlsIdentity: this node's certificate with its key, and the authority whose certificates it
// accepts from peers. A connection is TLS 1.3 with certificates on both ends, and is never resumed,
// so every connection has been checked against the identity that was in use when it was opened.
//
// Of the io_context's thread.
#pragma once

#include <boost/asio/ssl/context.hpp>
#include <memory>
#include <string>
#include <vector>

#include "kvm/error.h"

namespace kvm::mesh {

struct TlsFiles {
  std::string authority;    // PEM: certificates of the authorities that are trusted
  std::string certificate;  // PEM: this node's, followed by intermediate ones if there are any
  std::string key;          // PEM
  std::string revoked{};    // PEM: revocation lists of the authorities; empty: none

  bool any() const noexcept { return !authority.empty() || !certificate.empty() || !key.empty(); }
  bool all() const noexcept { return !authority.empty() && !certificate.empty() && !key.empty(); }
};

// The URIs of a certificate's subjectAltName that proto/mesh/mesh_identity.h describes.
std::vector<std::string> IdentitiesOf(const X509* certificate);
// Whether it is valid now, by its own dates.
bool InDate(const X509* certificate) noexcept;

class TlsIdentity {
 public:
  // kInvalidArgument, the file named: it can't be read, the key does not belong to the certificate,
  // the certificate is not of `node` or out of date, or a revocation list is out of date.
  [[nodiscard]] static Result<std::shared_ptr<TlsIdentity>> Load(const TlsFiles& files, const std::string& node);

  boost::asio::ssl::context& context() noexcept { return context_; }
  // Connections that were opened with it are to be opened anew.
  bool current() const noexcept;
  void Replace() noexcept { replaced_ = true; }

 private:
  TlsIdentity() : context_(boost::asio::ssl::context::tlsv13) {}

  boost::asio::ssl::context context_;
  bool replaced_ = false;
};

}  // namespace kvm::mesh
