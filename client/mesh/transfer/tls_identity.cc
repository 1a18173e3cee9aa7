#include "client/mesh/transfer/tls_identity.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include <algorithm>

#include "proto/mesh/mesh_identity.h"

namespace kvm::mesh {
namespace {

namespace ssl = boost::asio::ssl;

struct FreeNames {
  void operator()(GENERAL_NAMES* names) const noexcept { GENERAL_NAMES_free(names); }
};

struct FreeFile {
  void operator()(BIO* file) const noexcept { BIO_free_all(file); }
};
struct FreeList {
  void operator()(X509_CRL* list) const noexcept { X509_CRL_free(list); }
};

Error Refused(const std::string& option, const std::string& file, const std::string& why) {
  return MakeError(Errc::kInvalidArgument, option + ": " + file + ": " + why);
}

bool NamesNode(const std::vector<std::string>& identities, const std::string& node) {
  const std::string end = '/' + IdentityNode(node);
  return std::any_of(identities.begin(), identities.end(), [&](const std::string& each) { return each.ends_with(end); });
}

// Peers whose certificate is in one of the file's lists, or of an authority without a list there,
// are refused.
Status LoadRevoked(SSL_CTX* context, const std::string& path) {
  const auto refused = [&](const std::string& why) {
    ERR_clear_error();
    return Refused("--tls-crl", path, why);
  };
  const std::unique_ptr<BIO, FreeFile> file(BIO_new_file(path.c_str(), "r"));
  if (!file) return refused("it can't be read");
  X509_STORE* const store = SSL_CTX_get_cert_store(context);
  int lists = 0;
  while (const std::unique_ptr<X509_CRL, FreeList> list{PEM_read_bio_X509_CRL(file.get(), nullptr, nullptr, nullptr)}) {
    const ASN1_TIME* const next = X509_CRL_get0_nextUpdate(list.get());
    if (next != nullptr && X509_cmp_current_time(next) <= 0) return refused("a list in it is out of date");
    if (X509_STORE_add_crl(store, list.get()) != 1) return refused("a list in it can't be used");
    ++lists;
  }
  const unsigned long end = ERR_peek_last_error();
  if (lists == 0 || ERR_GET_LIB(end) != ERR_LIB_PEM || ERR_GET_REASON(end) != PEM_R_NO_START_LINE)
    return refused("it is no revocation list");
  ERR_clear_error();
  if (X509_STORE_set_flags(store, X509_V_FLAG_CRL_CHECK) != 1) return refused("OpenSSL can't use it");
  return {};
}

}  // namespace

std::vector<std::string> IdentitiesOf(const X509* certificate) {
  std::vector<std::string> out;
  const std::unique_ptr<GENERAL_NAMES, FreeNames> names(
      static_cast<GENERAL_NAMES*>(X509_get_ext_d2i(certificate, NID_subject_alt_name, nullptr, nullptr)));
  for (int i = 0; names && i < sk_GENERAL_NAME_num(names.get()); ++i) {
    const GENERAL_NAME* const name = sk_GENERAL_NAME_value(names.get(), i);
    if (name->type != GEN_URI) continue;
    // With its length: a NUL inside must not end it.
    const ASN1_IA5STRING* const uri = name->d.uniformResourceIdentifier;
    std::string text(reinterpret_cast<const char*>(ASN1_STRING_get0_data(uri)), static_cast<std::size_t>(ASN1_STRING_length(uri)));
    if (text.starts_with(kIdentityScheme)) out.push_back(std::move(text));
  }
  return out;
}

bool InDate(const X509* certificate) noexcept {
  return X509_cmp_current_time(X509_get0_notBefore(certificate)) < 0 && X509_cmp_current_time(X509_get0_notAfter(certificate)) > 0;
}

Result<std::shared_ptr<TlsIdentity>> TlsIdentity::Load(const TlsFiles& files, const std::string& node) {
  std::shared_ptr<TlsIdentity> out(new TlsIdentity);
  boost::system::error_code error;
  SSL_CTX* const native = out->context_.native_handle();
  if (SSL_CTX_set_min_proto_version(native, TLS1_3_VERSION) != 1) return MakeError(Errc::kUnsupported, "OpenSSL has no TLS 1.3");
  SSL_CTX_set_session_cache_mode(native, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_num_tickets(native, 0);
  out->context_.set_verify_mode(ssl::verify_peer | ssl::verify_fail_if_no_peer_cert, error);
  if (!error) out->context_.load_verify_file(files.authority, error);
  if (error) return Refused("--tls-ca", files.authority, error.message());
  out->context_.use_certificate_chain_file(files.certificate, error);
  if (error) return Refused("--tls-cert", files.certificate, error.message());
  // No question for a passphrase on a terminal: a key that is encrypted is refused.
  out->context_.set_password_callback([](std::size_t, ssl::context::password_purpose) { return std::string(); }, error);
  if (!error) out->context_.use_private_key_file(files.key, ssl::context::pem, error);
  if (error) return Refused("--tls-key", files.key, error.message());
  if (SSL_CTX_check_private_key(native) != 1) return Refused("--tls-key", files.key, "it is not the key of " + files.certificate);
  const X509* const own = SSL_CTX_get0_certificate(native);
  const std::vector<std::string> identities = IdentitiesOf(own);
  if (!NamesNode(identities, node)) {
    return Refused("--tls-cert", files.certificate,
                   "it is not of node " + node + " but of " + (identities.empty() ? "no node" : identities.front()));
  }
  if (!InDate(own)) return Refused("--tls-cert", files.certificate, "it is out of date");
  if (!files.revoked.empty()) {
    if (Status loaded = LoadRevoked(native, files.revoked); !loaded) return loaded.error();
  }
  return out;
}

bool TlsIdentity::current() const noexcept {
  return !replaced_ && InDate(SSL_CTX_get0_certificate(const_cast<ssl::context&>(context_).native_handle()));
}

}  // namespace kvm::mesh
