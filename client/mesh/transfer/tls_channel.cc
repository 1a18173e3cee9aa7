#include "client/mesh/transfer/tls_channel.h"

#include <openssl/ssl.h>

#include <algorithm>
#include <boost/asio/ssl/error.hpp>
#include <vector>

#include "proto/mesh/mesh_identity.h"

namespace kvm::mesh {

Awaitable<Status> TlsChannel::Handshake(Time deadline) {
  const std::shared_ptr<State> opened = state();
  boost::system::error_code error;
  opened->guard->Begin(deadline);
  co_await opened->stream.async_handshake(role_, boost::asio::redirect_error(boost::asio::use_awaitable, error));
  Status ended = Ended(*opened, error, "TLS handshake");
  SSL* const native = opened->stream.native_handle();
  if (!ended && error.category() == boost::asio::error::get_ssl_category()) {
    const long verified = SSL_get_verify_result(native);
    const std::string why = verified == X509_V_OK ? error.message() : X509_verify_cert_error_string(verified);
    co_return MakeError(Errc::kPermissionDenied, "TLS handshake: " + why);
  }
  if (!ended) co_return ended;
  peer_.reset(SSL_get1_peer_certificate(native));
  if (!peer_ || SSL_get_verify_result(native) != X509_V_OK)
    co_return Fail(MakeError(Errc::kPermissionDenied, "TLS handshake: the peer has no valid certificate"));
  co_return Status();
}

bool TlsChannel::IsNode(const std::string& domain, const std::string& node) const {
  if (!peer_) return false;
  const std::vector<std::string> names = IdentitiesOf(peer_.get());
  return std::find(names.begin(), names.end(), MeshIdentity(domain, node)) != names.end();
}

bool TlsChannel::current() const noexcept { return open() && identity_->current() && peer_ && InDate(peer_.get()); }

}  // namespace kvm::mesh
