// kvctl support-bundle: status, checks, events, configuration, versions and limits in one .tar.
//
// Nothing in it has tokens or bytes of blocks: no command that it runs can print either.
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <optional>
#include <sstream>
#include <utility>

#include "client/kvctl/cli/exit_codes.h"
#include "client/kvctl/cli/json.h"
#include "client/kvctl/cli/observer.h"
#include "client/kvctl/cli/text.h"
#include "client/kvctl/process/child_process.h"
#include "client/kvctl/process/private_kvmd.h"
#include "client/kvctl/process/temporary_directory.h"
#include "client/kvctl/support/program_output.h"
#include "client/kvctl/support/support.h"

namespace kvm::ctl {
namespace {

constexpr std::chrono::seconds kProgramTimeout{30};
constexpr const char* kEventLines = "5000";
// Files, and the units whose log they have.
constexpr std::array<std::pair<const char*, const char*>, 3> kUnitLogs{
    {{"events.txt", "kvmd"}, {"exporter-events.txt", "kvmd-exporter"}, {"mesh-events.txt", "kvmd-mesh@*"}}};

std::string TimeText() {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  ::localtime_r(&now, &local);
  std::array<char, 32> text;
  return {text.data(), std::strftime(text.data(), text.size(), "%Y%m%d-%H%M%S", &local)};
}

// A directory that is removed again.
class TemporaryDirectory {
 public:
  [[nodiscard]] Status Make() {
    Result<std::string> made = MakeTemporaryDirectory();
    if (!made) return made.error();
    path_ = std::move(*made);
    return {};
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
  }
  const std::filesystem::path& path() const noexcept { return path_; }

 private:
  std::filesystem::path path_;
};

class Bundle {
 public:
  Bundle(const CommonOptions& common, std::filesystem::path folder) : common_(common), folder_(std::move(folder)) {}

  void Collect(const SupportBundleOptions& options) {
    AddOwn("version.txt", {"--version"});
    for (const char* view : {"status", "doctor", "clients", "regions", "models", "leases", "hot", "drain", "topo"})
      AddOwn(std::string(view) + ".json", {view, "--json"});
#ifdef KVM_HAVE_PROMETHEUS
    AddOwn("metrics.txt", {"exporter", "--once"});
#endif
    AddOwn("mesh-status.json", {"mesh", "status", "--json"});
    for (const auto& [name, unit] : kUnitLogs)
      AddProgram(name, "journalctl", {std::string("--unit=") + unit, "--no-pager", "--output=short-iso", "--lines", kEventLines});
    AddProgram("kernel-events.txt", "journalctl",
               {"--dmesg", "--no-pager", "--output=short-iso", "--lines=300", "--grep=kvmd|oom|NVRM|memory"});
    AddProgram("unit.txt", "systemctl", {"show", "kvmd.service", "kvmd.socket", "--no-pager"});
    if (const Result<std::string> kvmd = FindKvmd(options.kvmd); kvmd) {
      Add("kvmd-version.txt", OutputOf(*kvmd, {"--version"}, kProgramTimeout));
      Add("config-check.txt", OutputOf(*kvmd, {"--config", options.config, "--check-config"}, kProgramTimeout));
    } else {
      Fail("kvmd-version.txt", kvmd.error());
    }
    AddFile("kvmd.toml", options.config);
    AddProgram("uname.txt", "uname", {"-a"});
    for (const char* file :
         {"/etc/os-release", "/proc/meminfo", "/proc/self/limits", "/proc/self/cgroup", "/proc/sys/fs/file-nr", "/proc/sys/vm/nr_hugepages",
          "/proc/sys/vm/overcommit_memory", "/sys/kernel/mm/transparent_hugepage/shmem_enabled"})
      AddFile(NameOf(file), file);
    AddKvmdProcess();
  }

  [[nodiscard]] Status Write(const std::string& output) const {
    const std::string tar = ProgramInPath("tar");
    if (tar.empty()) return MakeError(Errc::kNotFound, "support-bundle: no tar in PATH");
    // Names and configuration are not for all users of the machine.
    const mode_t mask = ::umask(0077);
    const Result<ProgramOutput> said =
        OutputOf(tar, {"--create", "--file", output, "--directory", folder_.parent_path(), folder_.filename()}, kProgramTimeout);
    ::umask(mask);
    if (!said) return said.error();
    if (!said->succeeded) return MakeError(Errc::kInvalidArgument, "support-bundle: tar " + said->ending + ": " + said->text);
    return {};
  }

  struct Missing {
    std::string file, why;
  };
  const std::vector<std::string>& files() const noexcept { return files_; }
  const std::vector<Missing>& missing() const noexcept { return missing_; }

 private:
  static std::string NameOf(std::string path) {
    path.erase(0, 1);
    for (char& c : path) c = c == '/' ? '-' : c;
    return path + ".txt";
  }

  void Fail(const std::string& name, const Error& error) { missing_.push_back({name, Printable(error.ToString())}); }
  void AddText(const std::string& name, const std::string& text) {
    std::ofstream(folder_ / name) << text;
    files_.push_back(name);
  }
  // What a program says is kept also where it fails: that it does is a finding.
  void Add(const std::string& name, const Result<ProgramOutput>& said) {
    if (!said) return Fail(name, said.error());
    AddText(name, said->text + (said->succeeded ? "" : "\n(" + said->ending + ")\n"));
  }
  void AddProgram(const std::string& name, const std::string& program, const std::vector<std::string>& arguments) {
    const std::string path = ProgramInPath(program);
    if (path.empty()) return missing_.push_back({name, "no " + program + " in PATH"});
    Add(name, OutputOf(path, arguments, kProgramTimeout));
  }
  void AddOwn(const std::string& name, std::vector<std::string> arguments) {
    const Result<std::string> own = OwnBinary();
    if (!own) return Fail(name, own.error());
    arguments.insert(arguments.end(), {"--socket", common_.socket, "--timeout-ms", std::to_string(common_.timeout_ms)});
    Add(name, OutputOf(*own, arguments, kProgramTimeout));
  }
  void AddFile(const std::string& name, const std::string& path) {
    std::ifstream file(path);
    std::ostringstream text;
    text << file.rdbuf();
    if (!file) return missing_.push_back({name, path + " can't be read"});
    AddText(name, text.str());
  }
  // Its limits, as it has them and not as this process does.
  void AddKvmdProcess() {
    Result<Observer> observer = Observer::ConnectAsMonitor(common_.socket, common_.timeout());
    const Result<kvmwire::StatusReply> status = observer ? observer->QueryStatus(false) : Result<kvmwire::StatusReply>(observer.error());
    if (!status) return Fail("kvmd-process", status.error());
    for (const char* file : {"limits", "status", "cgroup"})
      AddFile("kvmd-" + std::string(file) + ".txt", "/proc/" + std::to_string(status->pid()) + "/" + file);
  }

  const CommonOptions& common_;
  const std::filesystem::path folder_;
  std::vector<std::string> files_;
  std::vector<Missing> missing_;
};

}  // namespace

int RunSupportBundle(const CommonOptions& common, const SupportBundleOptions& options) {
  TemporaryDirectory temporary;
  if (Status made = temporary.Make(); !made) return Fail(made.error());
  const std::string name = "kvmd-support-" + TimeText();
  const std::filesystem::path folder = temporary.path() / name;
  std::error_code error;
  std::filesystem::create_directory(folder, error);
  if (error) return Fail(SystemError("make " + folder.string(), error.value()));
  Bundle bundle(common, folder);
  bundle.Collect(options);
  const std::string output = options.output.empty() ? name + ".tar" : options.output;
  if (Status written = bundle.Write(output); !written) return Fail(written.error());
  if (common.json) {
    boost::json::array files, missing;
    for (const std::string& file : bundle.files()) files.emplace_back(file);
    for (const Bundle::Missing& each : bundle.missing()) missing.push_back({{"file", each.file}, {"why", each.why}});
    PrintJson({{"output", output}, {"folder", name}, {"files", std::move(files)}, {"missing", std::move(missing)}});
    return kHealthy;
  }
  std::cout << "wrote " << Printable(output) << ": " << bundle.files().size() << " files in " << name << '\n';
  for (const Bundle::Missing& each : bundle.missing()) std::cout << "  without " << each.file << ": " << each.why << '\n';
  return kHealthy;
}

}  // namespace kvm::ctl
