// TlsChannel: a Channel over TLS. Certificates are checked in the handshake, on both ends; which
// node and which domain the peer is of is checked by IsNode.
#pragma once

#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <memory>
#include <string>

#include "client/mesh/transfer/stream_channel.h"
#include "client/mesh/transfer/tls_identity.h"

namespace kvm::mesh {

using TlsStream = boost::asio::ssl::stream<boost::asio::ip::tcp::socket>;

class TlsChannel final : public StreamChannel<TlsStream> {
 public:
  using Role = boost::asio::ssl::stream_base::handshake_type;

  TlsChannel(boost::asio::ip::tcp::socket socket, std::shared_ptr<TlsIdentity> identity, Role role)
      : StreamChannel(std::move(socket), identity->context()), identity_(std::move(identity)), role_(role) {}

  Awaitable<Status> Handshake(Time deadline) override;
  bool IsNode(const std::string& domain, const std::string& node) const override;
  bool current() const noexcept override;

 private:
  struct FreeCertificate {
    void operator()(X509* certificate) const noexcept { X509_free(certificate); }
  };

  std::shared_ptr<TlsIdentity> identity_;
  Role role_;
  std::unique_ptr<X509, FreeCertificate> peer_;  // null before the handshake
};

}  // namespace kvm::mesh
