// kvctl doctor on kvmd-mesh: peers, kvmd, etcd, the disk.
#include "client/kvctl/doctor/mesh_checks.h"
#include "tests/catch.h"

namespace {

using namespace kvm;
using namespace kvm::ctl;

kvmmesh::Status Healthy() {
  kvmmesh::Status status;
  status.set_node("a");
  status.set_domain("uid:7");
  for (const char* name : {"b", "c"}) {
    kvmmesh::PeerStatus& peer = *status.add_peers();
    peer.set_node(name);
    peer.set_address("192.0.2.1:7600");
    peer.set_fresh(true);
  }
  status.mutable_etcd()->set_connected(true);
  status.mutable_etcd()->set_entry(kvmmesh::EtcdStatus::REGISTERED);
  status.mutable_disk()->set_path("/var/cache");
  status.mutable_disk()->set_state("on");
  return status;
}

// The details of all warnings, one behind the other.
std::string Warnings(const kvmmesh::Status& status, const std::string& domain = "uid:7") {
  std::string out;
  for (const Check& check : CheckMesh(status, domain))
    if (check.verdict != Verdict::kOk) out += check.name + ": " + check.detail + "\n";
  return out;
}

bool Contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("Doctor: a healthy kvmd-mesh is one line, and so is one without peers, etcd and disk", "[unit]") {
  const std::vector<Check> checks = CheckMesh(Healthy(), "uid:7");
  REQUIRE(checks.size() == 1);
  CHECK(checks[0].verdict == Verdict::kOk);
  CHECK(checks[0].detail == "node a, 2 of 2 peers answer");
  kvmmesh::Status alone;
  alone.set_domain("uid:7");
  CHECK(CheckMesh(alone, "").size() == 1);
  CHECK(Warnings(alone, "").empty());
}

TEST_CASE("Doctor: peers of kvmd-mesh that do not answer, or have lied, are named with the latest error", "[unit]") {
  kvmmesh::Status status = Healthy();
  status.mutable_peers(0)->set_fresh(false);
  status.mutable_peers(0)->set_last_error("connect to 192.0.2.1:7600: Connection refused");
  status.mutable_peers(1)->set_shunned(true);
  const std::string said = Warnings(status);
  INFO(said);
  CHECK(Contains(said, "0 of 2 peers answer: b at 192.0.2.1:7600 does not answer (connect to 192.0.2.1:7600: Connection refused); c at"));
  CHECK(Contains(said, "c at 192.0.2.1:7600 has sent wrong data"));
  for (int i = 0; i < 7; ++i) status.add_peers()->set_node("more");
  CHECK(Contains(Warnings(status), "and 5 more: kvctl mesh peers"));
}

TEST_CASE("Doctor: a kvmd-mesh without kvmd, or at another kvmd, is a warning", "[unit]") {
  kvmmesh::Status status = Healthy();
  status.set_domain("");
  CHECK(Contains(Warnings(status), "not connected to kvmd"));
  status.set_domain("uid:8");
  CHECK(Contains(Warnings(status), "the domain uid:8, and this kvmd gives uid:7"));
  CHECK(Warnings(status, "").empty());
}

TEST_CASE("Doctor: what keeps kvmd-mesh from etcd, its disk or memory is a warning with the reason", "[unit]") {
  kvmmesh::Status status = Healthy();
  status.mutable_etcd()->set_connected(false);
  status.mutable_etcd()->set_endpoint("http://etcd:2379");
  status.mutable_etcd()->set_last_error("no route");
  CHECK(Contains(Warnings(status), "mesh etcd: not connected to http://etcd:2379: no route"));
  status = Healthy();
  status.mutable_etcd()->set_entry(kvmmesh::EtcdStatus::NAME_TAKEN);
  CHECK(Contains(Warnings(status), "another process has an entry with this node's name"));
  status = Healthy();
  status.mutable_disk()->set_state("opening");
  CHECK(Warnings(status).empty());
  status.mutable_disk()->set_state("read only");
  status.mutable_disk()->set_reason("No space left on device");
  status.mutable_disk()->set_bad_records(3);
  CHECK(Contains(Warnings(status), "/var/cache is read only: No space left on device"));
  CHECK(Contains(Warnings(status), "3 damaged blocks"));
  status = Healthy();
  status.set_failed_work(2);
  status.set_last_failed_work("a scan: std::bad_alloc");
  CHECK(Contains(Warnings(status), "2 times its work has ended for lack of memory, at last a scan: std::bad_alloc"));
}
