#include "client/kvctl/doctor/mesh_checks.h"

#include "client/kvctl/cli/text.h"

namespace kvm::ctl {
namespace {

Check CheckPeers(const kvmmesh::Status& status) {
  constexpr int kNamed = 4;
  int lacking = 0;
  std::string named;
  for (const kvmmesh::PeerStatus& peer : status.peers()) {
    if (peer.fresh() && !peer.shunned()) continue;
    if (++lacking > kNamed) continue;
    named += (lacking > 1 ? "; " : "") + Printable(peer.node()) + " at " + Printable(peer.address()) +
             (peer.shunned() ? " has sent wrong data and is not asked for a while" : " does not answer") +
             (peer.last_error().empty() ? "" : " (" + Printable(peer.last_error()) + ")");
  }
  if (lacking > kNamed) named += "; and " + std::to_string(lacking - kNamed) + " more: kvctl mesh peers";
  const std::string answering = "node " + Printable(status.node()) + ", " + std::to_string(status.peers_size() - lacking) + " of " +
                                std::to_string(status.peers_size()) + (status.peers_size() == 1 ? " peer answers" : " peers answer");
  if (lacking == 0) return {"mesh", Verdict::kOk, answering};
  return {"mesh", Verdict::kWarn, answering + ": " + named + ". Their blocks are computed here instead"};
}

void CheckDisk(const kvmmesh::DiskStatus& disk, std::vector<Check>& checks) {
  if (disk.state() != "on" && disk.state() != "opening") {
    checks.push_back({"mesh disk", Verdict::kWarn,
                      "the disk cache in " + Printable(disk.path()) + " is " + Printable(disk.state()) + ": " + Printable(disk.reason())});
  }
  if (disk.bad_records() > 0) {
    checks.push_back({"mesh disk", Verdict::kWarn,
                      HumanCount(disk.bad_records()) + " damaged blocks were read from " + Printable(disk.path()) +
                          " and not used: the disk may fail (the kernel's log)"});
  }
}

void CheckEtcd(const kvmmesh::EtcdStatus& etcd, std::vector<Check>& checks) {
  if (!etcd.connected()) {
    checks.push_back({"mesh etcd", Verdict::kWarn,
                      "not connected to " + Printable(etcd.endpoint()) + ": " + Printable(etcd.last_error()) +
                          ". Peers that are known stay; new ones are not found"});
  }
  if (etcd.entry() == kvmmesh::EtcdStatus::NAME_TAKEN) {
    checks.push_back({"mesh etcd", Verdict::kWarn,
                      "another process has an entry with this node's name, so others do not find this node: give one of them another "
                      "--node"});
  }
}

}  // namespace

std::vector<Check> CheckMesh(const kvmmesh::Status& status, const std::string& domain) {
  std::vector<Check> checks{CheckPeers(status)};
  if (status.domain().empty()) {
    checks.push_back({"mesh", Verdict::kWarn, "it is not connected to kvmd, so that it serves and brings nothing"});
  } else if (!domain.empty() && status.domain() != domain) {
    checks.push_back({"mesh", Verdict::kWarn,
                      "its kvmd has given it the domain " + Printable(status.domain()) + ", and this kvmd gives " + Printable(domain) +
                          ": is its --socket another kvmd's?"});
  }
  if (status.has_etcd()) CheckEtcd(status.etcd(), checks);
  if (status.has_disk()) CheckDisk(status.disk(), checks);
  if (status.failed_work() > 0) {
    checks.push_back({"mesh", Verdict::kWarn,
                      HumanCount(status.failed_work()) + " times its work has ended for lack of memory, at last " +
                          Printable(status.last_failed_work()) + ": raise the unit's MemoryMax=, or lower --pool-size"});
  }
  return checks;
}

}  // namespace kvm::ctl
