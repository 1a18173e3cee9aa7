// kvctl doctor: prints one line per check: ok, warn or fail, and the values that were checked.
#include "client/kvctl/doctor/doctor.h"

#include <sys/resource.h>
#include <sys/stat.h>

#include <cerrno>
#include <functional>
#include <iostream>

#include "client/kvctl/cli/exit_codes.h"
#include "client/kvctl/cli/json.h"
#include "client/kvctl/cli/observer.h"
#include "client/kvctl/cli/registry_tables.h"
#include "client/kvctl/cli/text.h"
#include "client/kvctl/doctor/doctor_checks.h"
#include "client/kvctl/doctor/mesh_checks.h"
#include "client/kvctl/doctor/miss_checks.h"
#include "client/kvctl/mesh/mesh_question.h"
#include "kvclient/client.h"
#include "proto/mesh/mesh_socket.h"

namespace kvm::ctl {
namespace {

class Doctor {
 public:
  Doctor(const CommonOptions& common, const std::string& mesh_socket) : common_(common), mesh_socket_(mesh_socket) {}

  int Run() {
    const bool reached = CheckSocket() && CheckAnswer();
    if (reached) {
      CheckRegistry();
      CheckTables();
      CheckClients();
      CheckWorkerPath();
    }
    CheckMeshProcess();
    CheckThisProcess();
    CheckThisMachine(reached);
    Report();
    if (!reached) return exit_;
    return failures_ > 0 ? kUnhealthy : kHealthy;
  }

 private:
  void Add(std::string name, Verdict verdict, std::string detail) {
    failures_ += verdict == Verdict::kFail;
    checks_.push_back({std::move(name), verdict, std::move(detail)});
  }

  void AddAll(std::vector<Check> checks) {
    for (Check& check : checks) Add(std::move(check.name), check.verdict, std::move(check.detail));
  }

  bool CheckSocket() {
    if (const Status possible = CheckSocketPath(common_.socket); !possible) {
      Add("socket", Verdict::kFail, possible.error().ToString());
      exit_ = ExitFor(possible.error().code);
      return false;
    }
    struct stat info {};
    if (::stat(common_.socket.c_str(), &info) != 0) {
      const Error error = SystemError(common_.socket);
      const bool hidden = error.sys_errno == EACCES;
      Add("socket", Verdict::kFail,
          error.ToString() +
              (hidden ? "; this user may not enter its directory" : "; is kvmd running? A container needs its directory mounted"));
      exit_ = kUnreachable;
      return false;
    }
    if (!S_ISSOCK(info.st_mode)) {
      Add("socket", Verdict::kFail, common_.socket + " is not a socket");
      exit_ = kUnreachable;
      return false;
    }
    Add("socket", Verdict::kOk, common_.socket);
    return true;
  }

  bool CheckAnswer() {
    Result<Observer> observer = Observer::Connect(common_.socket, common_.timeout());
    if (!observer) {
      const Errc code = observer.error().code;
      Add(code == Errc::kVersionMismatch ? "version" : "answer", Verdict::kFail, observer.error().ToString());
      exit_ = ExitFor(code);
      return false;
    }
    observer_ = std::move(*observer);
    Result<std::chrono::nanoseconds> ping = observer_->Ping();
    Result<kvmwire::StatusReply> status = observer_->QueryStatus(true, true);
    if (!ping || !status) {
      const Error& error = !ping ? ping.error() : status.error();
      Add("answer", Verdict::kFail, error.ToString());
      exit_ = ExitFor(error.code);
      return false;
    }
    status_ = std::move(*status);
    Add("answer", Verdict::kOk, "pid " + std::to_string(status_.pid()) + " in " + HumanNanoseconds(static_cast<double>(ping->count())));
    const bool same = observer_->hello().server_version() == KVM_VERSION;
    Add("version", same ? Verdict::kOk : Verdict::kWarn,
        "kvmd " + Printable(observer_->hello().server_version()) + ", kvctl " KVM_VERSION + (same ? "" : "; update both together"));
    return true;
  }

  void CheckRegistry() {
    const auto age = observer_->HeartbeatAge();
    Add("heartbeat",
        age > kHeartbeatLimit       ? Verdict::kFail
        : age > kHeartbeatLimit / 2 ? Verdict::kWarn
                                    : Verdict::kOk,
        std::to_string(age.count()) + " ms ago");
    const layout::SegmentState state = observer_->registry().state();
    Add("registry", state == layout::SegmentState::kLive ? Verdict::kOk : Verdict::kFail,
        "segment of epoch " + std::to_string(observer_->hello().epoch()) + " is " + std::string(SegmentStateName(state)));
    const bool same_domain = observer_->hello().domain() == observer_->registry().header().domain;
    Add("domain", same_domain ? Verdict::kOk : Verdict::kFail,
        Printable(observer_->hello().domain()) + (same_domain ? "" : ", but the segment is of another one"));
  }

  void CheckLevel(const std::string& name, std::uint64_t used, std::uint64_t limit, const std::string& setting) {
    const double level = limit == 0 ? 1 : static_cast<double>(used) / static_cast<double>(limit);
    const Verdict verdict = level >= 0.9 ? Verdict::kWarn : Verdict::kOk;
    Add(name, verdict, HumanCount(used) + " of " + HumanCount(limit) + (verdict == Verdict::kOk ? "" : "; raise kvmd's " + setting));
  }

  void CheckTables() {
    for (const auto& domain : status_.domains()) {
      const std::string prefix = status_.domains_size() > 1 ? Printable(domain.name()) + ": " : "";
      CheckLevel(prefix + "blocks", domain.entries(), domain.max_entries(), "--max-entries");
      CheckLevel(prefix + "regions", domain.regions(), domain.max_regions(), "--max-regions");
      CheckLevel(prefix + "models", domain.models(), domain.max_models(), "--max-models");
      CheckLevel(prefix + "descriptors", domain.fds(), domain.max_fds(), "--max-fds-per-domain");
    }
    // A kvmd of an earlier version does not report it.
    if (status_.max_retained_fds() > 0)
      CheckLevel("descriptors of all domains", status_.retained_fds(), status_.max_retained_fds(), "LimitNOFILE");
    CheckLevel("connections", status_.clients(), status_.max_clients(), "--max-clients");
    CheckLevel("connections of this user", status_.user_clients(), status_.max_clients_per_user(), "--max-clients-per-user");
    const layout::Counters& counters = observer_->registry().header().counters;
    const std::uint64_t full = counters.refused_full.load(std::memory_order_relaxed),
                        evicted = counters.evicted.load(std::memory_order_relaxed);
    Add("refusals", full > 0 || evicted > 0 ? Verdict::kWarn : Verdict::kOk,
        HumanCount(full) + " publishes refused and " + HumanCount(evicted) + " entries evicted for lack of room");
  }

  void CheckClients() {
    Add("connections refused", status_.rejected_connections() > 0 ? Verdict::kWarn : Verdict::kOk,
        HumanCount(status_.rejected_connections()) + " since kvmd started");
    Add("protocol errors", status_.protocol_errors() > 0 ? Verdict::kWarn : Verdict::kOk,
        HumanCount(status_.protocol_errors()) + " since kvmd started");
    AddAll(CheckClientList(status_));
    AddAll(CheckMisses(status_));
    AddAll(CheckHostCache(status_));
    AddAll(CheckOrphans(status_));
    AddAll(CheckModels(ReadModels(observer_->registry()), ReadRegions(observer_->registry())));
  }

  // Does what a worker does at its start, except for what other clients could see.
  void CheckWorkerPath() {
    ClientOptions options;
    options.socket_path = common_.socket;
    options.name = "kvctl-doctor";
    options.timeout = common_.timeout();
    options.map_payload = false;
    Result<std::shared_ptr<Client>> client = Client::Connect(options);
    if (!client) {
      Add("worker connection", Verdict::kFail, client.error().ToString());
      return;
    }
    const bool same = (*client)->domain() == observer_->hello().domain();
    Add("worker connection", same ? Verdict::kOk : Verdict::kFail, "domain " + Printable((*client)->domain()));
  }

  void CheckMeshProcess() {
    struct stat info {};
    if (mesh_socket_.empty() && ::stat(mesh::DefaultMeshSocket().c_str(), &info) != 0) return;
    const Result<kvmmesh::LocalMessage> answer = AskMeshStatus(common_, mesh_socket_);
    if (answer && answer->has_status()) {
      AddAll(CheckMesh(answer->status(), observer_ ? observer_->hello().domain() : ""));
    } else {
      Add("mesh", Verdict::kWarn, "kvmd-mesh does not answer: " + (answer ? "it said something else" : answer.error().ToString()));
    }
  }

  void CheckThisProcess() {
    Result<OwnedMemory> memory = OwnedMemory::Create("kvctl-doctor", 4096);
    Add("sealed memory", memory ? Verdict::kOk : Verdict::kFail, memory ? "memfd with F_SEAL_FUTURE_WRITE" : memory.error().ToString());
    rlimit files{};
    ::getrlimit(RLIMIT_NOFILE, &files);
    Add("descriptors", files.rlim_cur < 1024 ? Verdict::kWarn : Verdict::kOk, "limit " + std::to_string(files.rlim_cur) + " for this user");
  }

  void CheckThisMachine(bool reached) {
    const Result<Topology> topology = ReadTopology();
    AddAll(CheckGpus(CudaToolkitVersion(), topology));
    if (reached) AddAll(CheckGpuRegions(ReadRegions(observer_->registry()), topology));
  }

  void Report() const {
    if (common_.json) {
      boost::json::array checks;
      for (const Check& check : checks_) {
        checks.push_back({{"check", check.name}, {"verdict", VerdictName(check.verdict)}, {"detail", check.detail}});
      }
      PrintJson({{"healthy", failures_ == 0}, {"checks", std::move(checks)}});
      return;
    }
    Table table({"", "check", "seen"});
    for (const Check& check : checks_) table.Add({std::string(VerdictName(check.verdict)), check.name, check.detail});
    table.Print(std::cout);
  }

  const CommonOptions& common_;
  const std::string& mesh_socket_;
  std::optional<Observer> observer_;
  kvmwire::StatusReply status_;
  std::vector<Check> checks_;
  int failures_ = 0;
  int exit_ = kHealthy;
};

}  // namespace

int RunDoctor(const CommonOptions& common, const std::string& mesh_socket) { return Doctor(common, mesh_socket).Run(); }

}  // namespace kvm::ctl
