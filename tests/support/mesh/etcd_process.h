// The real etcd (Debian's package etcd-server) on ports of the loopback and data of its own; killed
// at the end of the test. Calls of its JSON gateway for tests.
#pragma once

#include <boost/json/object.hpp>
#include <optional>
#include <string>
#include <vector>

#include "tests/support/process/child_process.h"
#include "tests/support/process/temp_dir.h"

namespace kvm::test {

class EtcdProcess {
 public:
  // Whether the machine has etcd.
  static bool Available();
  // Why a test has to be skipped if not.
  static constexpr const char* kWhy = "there is no etcd: scripts/install_deps.sh --etcd installs it";

  // Starts etcd and waits until it answers. `tls`: options of etcd for certificates; its URL begins
  // with https:// then.
  explicit EtcdProcess(std::vector<std::string> tls = {});

  std::string url() const { return (tls_.empty() ? "http://127.0.0.1:" : "https://127.0.0.1:") + std::to_string(port_); }
  // With --auto-tls: the certificate that etcd has made for itself.
  std::string own_certificate() const { return dir_ / "data/fixtures/client/cert.pem"; }
  void Kill() { process_.Kill(); }  // SIGKILL; its data stay
  void Start();                     // again, with the same data
  void LoseData();                  // while it is not running
  void Signal(int signal) { process_.Signal(signal); }

  // The answer to a request; empty: there was none, or an error. Without TLS only.
  std::optional<boost::json::object> Ask(const std::string& path, const boost::json::object& request) const;
  // Keys that begin with `prefix`, with their values.
  std::vector<std::pair<std::string, std::string>> List(const std::string& prefix) const;
  void Put(const std::string& key, const std::string& value) const;
  void Delete(const std::string& key) const;
  // Drops all revisions before the present one.
  void Compact() const;

 private:
  std::vector<std::string> tls_;
  TempDir dir_;
  unsigned port_ = 0, peer_port_ = 0;
  ChildProcess process_;
};

}  // namespace kvm::test
