#include "client/kvctl/mesh/certificate_maker.h"

#include <openssl/bio.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>

#include <array>
#include <memory>

#include "proto/mesh/mesh_identity.h"

namespace kvm::ctl {
namespace {

template <auto Free>
struct Freed {
  template <class T>
  void operator()(T* object) const noexcept {
    Free(object);
  }
};
using Certificate = std::unique_ptr<X509, Freed<X509_free>>;
using Key = std::unique_ptr<EVP_PKEY, Freed<EVP_PKEY_free>>;
using Memory = std::unique_ptr<BIO, Freed<BIO_free_all>>;
using Extension = std::unique_ptr<X509_EXTENSION, Freed<X509_EXTENSION_free>>;
using RevocationList = std::unique_ptr<X509_CRL, Freed<X509_CRL_free>>;
using Names = std::unique_ptr<GENERAL_NAMES, Freed<GENERAL_NAMES_free>>;

Error OpenSslError(const std::string& what) {
  std::array<char, 256> text{};
  ERR_error_string_n(ERR_get_error(), text.data(), text.size());
  ERR_clear_error();
  return MakeError(Errc::kSystem, what + ": " + text.data());
}

std::string Text(BIO* memory) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(memory, &data);
  return {data, static_cast<std::size_t>(size)};
}

Memory Reader(const std::string& text) { return Memory(BIO_new_mem_buf(text.data(), static_cast<int>(text.size()))); }

bool SetSerial(X509* certificate) {
  std::array<unsigned char, 16> bytes{};
  if (RAND_bytes(bytes.data(), bytes.size()) != 1) return false;
  bytes[0] &= 0x7f;  // positive
  bytes[0] |= 0x40;  // of full length
  const std::unique_ptr<BIGNUM, Freed<BN_free>> number(BN_bin2bn(bytes.data(), bytes.size(), nullptr));
  return number && BN_to_ASN1_INTEGER(number.get(), X509_get_serialNumber(certificate)) != nullptr;
}

bool Extend(X509* certificate, X509* issuer, int kind, const char* value) {
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  const Extension extension(X509V3_EXT_conf_nid(nullptr, &context, kind, value));
  return extension && X509_add_ext(certificate, extension.get(), -1) == 1;
}

bool AddIdentity(X509* certificate, const std::string& uri) {
  const Names names(GENERAL_NAMES_new());
  ASN1_IA5STRING* const text = ASN1_IA5STRING_new();
  GENERAL_NAME* const name = GENERAL_NAME_new();
  if (!names || text == nullptr || name == nullptr || ASN1_STRING_set(text, uri.data(), static_cast<int>(uri.size())) != 1 ||
      sk_GENERAL_NAME_push(names.get(), name) == 0) {
    ASN1_IA5STRING_free(text);
    GENERAL_NAME_free(name);
    return false;
  }
  GENERAL_NAME_set0_value(name, GEN_URI, text);
  return X509_add1_ext_i2d(certificate, NID_subject_alt_name, names.get(), 0, 0) == 1;
}

// All but extensions and signature.
Certificate NewCertificate(const std::string& common_name, Validity validity, EVP_PKEY* key) {
  Certificate out(X509_new());
  if (!out || X509_set_version(out.get(), X509_VERSION_3) != 1 || !SetSerial(out.get()) || X509_set_pubkey(out.get(), key) != 1)
    return nullptr;
  if (ASN1_TIME_set(X509_getm_notBefore(out.get()), validity.from) == nullptr) return nullptr;
  if (ASN1_TIME_set(X509_getm_notAfter(out.get()), validity.until) == nullptr) return nullptr;
  X509_NAME* const subject = X509_get_subject_name(out.get());
  const auto* const name = reinterpret_cast<const unsigned char*>(common_name.c_str());
  if (X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_UTF8, name, -1, -1, 0) != 1) return nullptr;
  return out;
}

Result<IssuedCertificate> Write(X509* certificate, EVP_PKEY* key) {
  const Memory certificate_text(BIO_new(BIO_s_mem())), key_text(BIO_new(BIO_s_mem()));
  if (!certificate_text || !key_text || PEM_write_bio_X509(certificate_text.get(), certificate) != 1 ||
      PEM_write_bio_PrivateKey(key_text.get(), key, nullptr, nullptr, 0, nullptr, nullptr) != 1) {
    return OpenSslError("write a certificate");
  }
  return IssuedCertificate{Text(certificate_text.get()), Text(key_text.get())};
}

Certificate ReadCertificate(const std::string& text) {
  return Certificate(PEM_read_bio_X509(Reader(text).get(), nullptr, nullptr, nullptr));
}

struct Issuer {
  Certificate certificate;
  Key key;
};

Result<Issuer> ReadIssuer(const IssuedCertificate& authority) {
  Issuer out{ReadCertificate(authority.certificate), Key(PEM_read_bio_PrivateKey(Reader(authority.key).get(), nullptr, nullptr, nullptr))};
  if (out.certificate && out.key && X509_check_ca(out.certificate.get()) == 1 &&
      X509_check_private_key(out.certificate.get(), out.key.get()) == 1) {
    return out;
  }
  ERR_clear_error();
  return MakeError(Errc::kInvalidArgument, "no authority, or the key is not its own");
}

bool AddToList(X509_CRL* list, X509* certificate, std::time_t when) {
  X509_REVOKED* known = nullptr;
  if (X509_CRL_get0_by_cert(list, &known, certificate) == 1) return true;
  std::unique_ptr<X509_REVOKED, Freed<X509_REVOKED_free>> added(X509_REVOKED_new());
  const std::unique_ptr<ASN1_TIME, Freed<ASN1_TIME_free>> time(ASN1_TIME_set(nullptr, when));
  if (!added || !time || X509_REVOKED_set_serialNumber(added.get(), X509_get_serialNumber(certificate)) != 1 ||
      X509_REVOKED_set_revocationDate(added.get(), time.get()) != 1 || X509_CRL_add0_revoked(list, added.get()) != 1) {
    return false;
  }
  static_cast<void>(added.release());
  return true;
}

// Issuer, dates, number and signature.
bool SignList(X509_CRL* list, const Issuer& issuer, Validity validity) {
  const std::unique_ptr<ASN1_TIME, Freed<ASN1_TIME_free>> from(ASN1_TIME_set(nullptr, validity.from)),
      until(ASN1_TIME_set(nullptr, validity.until));
  const std::unique_ptr<ASN1_INTEGER, Freed<ASN1_INTEGER_free>> number(ASN1_INTEGER_new());
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  X509V3_set_ctx(&context, issuer.certificate.get(), nullptr, nullptr, list, 0);
  while (X509_CRL_get_ext_count(list) > 0) X509_EXTENSION_free(X509_CRL_delete_ext(list, 0));
  const Extension authority(X509V3_EXT_conf_nid(nullptr, &context, NID_authority_key_identifier, "keyid:always"));
  return from && until && number && authority && X509_CRL_set_version(list, X509_CRL_VERSION_2) == 1 &&
         X509_CRL_set_issuer_name(list, X509_get_subject_name(issuer.certificate.get())) == 1 &&
         X509_CRL_set1_lastUpdate(list, from.get()) == 1 && X509_CRL_set1_nextUpdate(list, until.get()) == 1 &&
         X509_CRL_add_ext(list, authority.get(), -1) == 1 &&
         // Later lists have larger numbers.
         ASN1_INTEGER_set_int64(number.get(), std::time(nullptr)) == 1 &&
         X509_CRL_add1_ext_i2d(list, NID_crl_number, number.get(), 0, 0) == 1 && X509_CRL_sort(list) == 1 &&
         X509_CRL_sign(list, issuer.key.get(), EVP_sha256()) > 0;
}

}  // namespace

Result<IssuedCertificate> MakeAuthority(const std::string& name, Validity validity) {
  const Key key(EVP_EC_gen("P-256"));
  if (!key) return OpenSslError("make a key");
  const Certificate made = NewCertificate(name, validity, key.get());
  if (!made) return OpenSslError("make a certificate");
  X509* const own = made.get();
  const bool complete = X509_set_issuer_name(own, X509_get_subject_name(own)) == 1 &&
                        Extend(own, own, NID_basic_constraints, "critical,CA:TRUE,pathlen:0") &&
                        Extend(own, own, NID_key_usage, "critical,keyCertSign,cRLSign") &&
                        Extend(own, own, NID_subject_key_identifier, "hash") && X509_sign(own, key.get(), EVP_sha256()) > 0;
  if (!complete) return OpenSslError("make a certificate");
  return Write(own, key.get());
}

Result<IssuedCertificate> MakeNodeCertificate(const IssuedCertificate& authority, const std::string& domain, const std::string& node,
                                              Validity validity) {
  const Result<Issuer> read = ReadIssuer(authority);
  if (!read) return read.error();
  const Certificate& issuer = read->certificate;
  const Key key(EVP_EC_gen("P-256"));
  if (!key) return OpenSslError("make a key");
  // A common name has at most 64 characters; it is for people, the identity counts.
  const Certificate made = NewCertificate(node.substr(0, 63), validity, key.get());
  if (!made) return OpenSslError("make a certificate");
  X509* const own = made.get();
  const bool complete = X509_set_issuer_name(own, X509_get_subject_name(issuer.get())) == 1 &&
                        Extend(own, issuer.get(), NID_basic_constraints, "critical,CA:FALSE") &&
                        Extend(own, issuer.get(), NID_key_usage, "critical,digitalSignature") &&
                        Extend(own, issuer.get(), NID_ext_key_usage, "serverAuth,clientAuth") &&
                        Extend(own, issuer.get(), NID_subject_key_identifier, "hash") &&
                        Extend(own, issuer.get(), NID_authority_key_identifier, "keyid") &&
                        AddIdentity(own, mesh::MeshIdentity(domain, node)) && X509_sign(own, read->key.get(), EVP_sha256()) > 0;
  if (!complete) return OpenSslError("make a certificate");
  return Write(own, key.get());
}

Result<std::string> MakeRevocationList(const IssuedCertificate& authority, const std::string& list,
                                       std::span<const std::string> certificates, Validity validity) {
  const Result<Issuer> issuer = ReadIssuer(authority);
  if (!issuer) return issuer.error();
  const RevocationList out(list.empty() ? X509_CRL_new() : PEM_read_bio_X509_CRL(Reader(list).get(), nullptr, nullptr, nullptr));
  if (!out || (!list.empty() && X509_CRL_verify(out.get(), issuer->key.get()) != 1)) {
    ERR_clear_error();
    return MakeError(Errc::kInvalidArgument, "the list is no revocation list of this authority");
  }
  for (const std::string& text : certificates) {
    const Certificate certificate = ReadCertificate(text);
    if (!certificate || X509_verify(certificate.get(), issuer->key.get()) != 1) {
      ERR_clear_error();
      return MakeError(Errc::kInvalidArgument, "not a certificate of this authority");
    }
    if (!AddToList(out.get(), certificate.get(), std::time(nullptr))) return OpenSslError("make a revocation list");
  }
  const Memory text(BIO_new(BIO_s_mem()));
  if (!SignList(out.get(), *issuer, validity) || !text || PEM_write_bio_X509_CRL(text.get(), out.get()) != 1)
    return OpenSslError("make a revocation list");
  return Text(text.get());
}

std::string IdentityIn(const std::string& certificate) {
  const Certificate read = ReadCertificate(certificate);
  if (!read) {
    ERR_clear_error();
    return {};
  }
  const Names names(static_cast<GENERAL_NAMES*>(X509_get_ext_d2i(read.get(), NID_subject_alt_name, nullptr, nullptr)));
  for (int i = 0; names && i < sk_GENERAL_NAME_num(names.get()); ++i) {
    const GENERAL_NAME* const name = sk_GENERAL_NAME_value(names.get(), i);
    if (name->type != GEN_URI) continue;
    const ASN1_IA5STRING* const uri = name->d.uniformResourceIdentifier;
    return {reinterpret_cast<const char*>(ASN1_STRING_get0_data(uri)), static_cast<std::size_t>(ASN1_STRING_length(uri))};
  }
  return {};
}

}  // namespace kvm::ctl
