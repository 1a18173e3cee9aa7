// kvctl mesh ca, cert and revoke: certificates and revocation lists in files.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <ctime>
#include <iostream>

#include "client/kvctl/cli/exit_codes.h"
#include "client/kvctl/cli/json.h"
#include "client/kvctl/mesh/certificate_maker.h"
#include "client/kvctl/mesh/mesh_commands.h"
#include "proto/base/text_files.h"
#include "proto/base/unique_fd.h"
#include "proto/mesh/mesh_identity.h"

namespace kvm::ctl {
namespace {

constexpr std::time_t kDay = 24 * 3600;
constexpr std::time_t kClockError = 300;  // of nodes whose clocks are behind

Validity For(unsigned days) {
  const std::time_t now = std::time(nullptr);
  return {now - kClockError, now + days * kDay};
}

// A file that does not exist yet.
Status WriteNew(const std::string& path, const std::string& text, mode_t mode) {
  const UniqueFd file(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode));
  if (!file && errno == EEXIST) return MakeError(Errc::kAlreadyExists, path + " exists; it is not replaced");
  if (!file) return SystemError("make " + path);
  if (::write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()) || ::fsync(file.get()) != 0) {
    Error error = SystemError("write " + path);
    ::unlink(path.c_str());
    return error;
  }
  return {};
}

// The key first: a certificate without its key is of no use, a key without a certificate harmless.
int WriteBoth(const CommonOptions& common, const std::string& base, const IssuedCertificate& made) {
  const std::string certificate = base + ".pem", key = base + ".key";
  if (Status written = WriteNew(key, made.key, 0600); !written) return Fail(written.error());
  if (Status written = WriteNew(certificate, made.certificate, 0644); !written) {
    ::unlink(key.c_str());
    return Fail(written.error());
  }
  const std::string identity = IdentityIn(made.certificate);
  if (common.json) {
    PrintJson(boost::json::object{{"certificate", certificate}, {"key", key}, {"identity", identity}});
  } else {
    std::cout << certificate << '\n' << key << '\n' << identity << (identity.empty() ? "" : "\n");
  }
  return kHealthy;
}

Result<IssuedCertificate> ReadAuthority(const std::string& directory) {
  Result<std::string> certificate = ReadTextFile(directory + "/ca.pem");
  if (!certificate) return certificate.error();
  Result<std::string> key = ReadTextFile(directory + "/ca.key");
  if (!key) return key.error();
  return IssuedCertificate{std::move(*certificate), std::move(*key)};
}

}  // namespace

int RunMeshAuthority(const CommonOptions& common, const MeshAuthorityOptions& options) {
  const Result<IssuedCertificate> made = MakeAuthority(options.name, For(options.days));
  if (!made) return Fail(made.error());
  return WriteBoth(common, options.directory + "/ca", *made);
}

int RunMeshCertificate(const CommonOptions& common, const MeshCertificateOptions& options) {
  const Result<IssuedCertificate> authority = ReadAuthority(options.authority_directory);
  if (!authority) return Fail(authority.error());
  const std::string domain = options.domain.empty() ? "uid:" + std::to_string(::geteuid()) : options.domain;
  const Result<IssuedCertificate> made = MakeNodeCertificate(*authority, domain, options.node, For(options.days));
  if (!made) return Fail(made.error());
  const std::string& directory = options.directory.empty() ? options.authority_directory : options.directory;
  // As the name is spelled in the identity, so that it has no '/'.
  return WriteBoth(common, directory + "/" + mesh::IdentityNode(options.node), *made);
}

int RunMeshRevoke(const CommonOptions& common, const MeshRevokeOptions& options) {
  const Result<IssuedCertificate> authority = ReadAuthority(options.authority_directory);
  if (!authority) return Fail(authority.error());
  const std::string path = options.authority_directory + "/crl.pem", next = path + ".new";
  Result<std::string> list = ReadTextFile(path);
  if (!list && list.error().code != Errc::kNotFound) return Fail(list.error());
  std::vector<std::string> certificates;
  for (const std::string& file : options.certificates) {
    Result<std::string> certificate = ReadTextFile(file);
    if (!certificate) return Fail(certificate.error());
    certificates.push_back(std::move(*certificate));
  }
  const Result<std::string> made = MakeRevocationList(*authority, list ? *list : "", certificates, For(options.days));
  if (!made) return Fail(made.error());
  ::unlink(next.c_str());  // of a run that was interrupted
  if (Status written = WriteNew(next, *made, 0644); !written) return Fail(written.error());
  if (std::rename(next.c_str(), path.c_str()) != 0) return Fail(SystemError("replace " + path));
  if (common.json) {
    PrintJson(boost::json::object{{"list", path}});
  } else {
    std::cout << path << '\n';
  }
  return kHealthy;
}

}  // namespace kvm::ctl
