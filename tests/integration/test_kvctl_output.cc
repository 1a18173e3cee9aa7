// kvctl with obstacles: a socket that it may not use, a path that is too long, an output that is
// not read.
#include <sys/stat.h>

#include <filesystem>
#include <string>

#include "kvclient/client.h"
#include "kvclient/region.h"
#include "tests/catch.h"
#include "tests/support/kvmd/kvctl_sandbox.h"
#include "tests/support/kvmd/kvmd_process.h"

namespace {

using namespace kvm;
using namespace kvm::ctl;
using kvm::test::Kvctl;
using kvm::test::Sandbox;

constexpr const char* kViews[] = {"status", "clients", "regions", "models", "ls", "leases", "reclaim --all", "doctor"};

}  // namespace

TEST_CASE("kvctl: a socket that this user may not use is unreachable, for every view", "[integration]") {
  if (::geteuid() != 0) KVM_SKIP("only root can run kvctl as another user");
  const Sandbox sandbox;
  const test::KvmdProcess kvmd({"--max-entries", "4096"});
  for (const char* view : kViews) {
    INFO(view);
    const std::string command = "setpriv --reuid=1235 --regid=1235 --clear-groups " + Kvctl() + " --socket " + kvmd.socket() + " " + view +
                                " >" + (sandbox.path() / "out").string() + " 2>&1";
    const int status = ::system(command.c_str());
    INFO(test::ReadFile(sandbox.path() / "out"));
    CHECK(WEXITSTATUS(status) == 2);
    CHECK(test::ReadFile(sandbox.path() / "out").find("Permission denied") != std::string::npos);
  }
}

TEST_CASE("kvctl: a socket path that is too long is refused alike by every view", "[integration]") {
  const Sandbox sandbox;
  const std::string path = "/tmp/" + std::string(103, 'x');
  for (const char* view : {"status", "clients", "models", "doctor"}) {
    INFO(view);
    const Sandbox::Output output = sandbox.Run("--socket " + path + " " + view);
    CHECK(output.code == 1);
    CHECK((output.out + output.err).find("socket path has 108 bytes, 1 to 107 are possible") != std::string::npos);
  }
}

TEST_CASE("kvctl replay: a TMPDIR that is too long for a private kvmd, or is not there, is named", "[integration]") {
  const Sandbox sandbox;
  const std::filesystem::path deep = sandbox.Tmp() / std::string(100, 'd');
  std::filesystem::create_directory(deep);
  const std::string replay = "replay --private --workload chat --requests 10 --workers 2";
  const Sandbox::Output too_long = sandbox.Run(replay, "TMPDIR=" + deep.string());
  INFO(too_long.err);
  CHECK(too_long.code == 1);
  CHECK(too_long.err.find("TMPDIR is too long for a private kvmd: socket path has ") != std::string::npos);
  CHECK(std::filesystem::is_empty(deep));
  const Sandbox::Output missing = sandbox.Run(replay, "TMPDIR=/nonexistent");
  CHECK(missing.code == 1);
  CHECK(missing.err.find("TMPDIR, /nonexistent/") != std::string::npos);
}

TEST_CASE("kvctl: a closed pipe as output is no error, an output that can't be written is", "[integration]") {
  const Sandbox sandbox;
  const test::KvmdProcess kvmd({"--max-entries", "4096"});
  const std::string status = Kvctl() + " --socket " + kvmd.socket() + " --json status";
  const std::string errors = (sandbox.path() / "err").string();
  // The reader is gone before kvctl writes.
  const std::string closed = "bash -c '(sleep 0.3; exec " + status + " 2>" + errors + ") | true; exit ${PIPESTATUS[0]}'";
  CHECK(WEXITSTATUS(::system(closed.c_str())) == 0);
  CHECK(test::ReadFile(errors).empty());
  CHECK(WEXITSTATUS(::system((status + " >&- 2>" + errors).c_str())) == 0);
  CHECK(WEXITSTATUS(::system((status + " >/dev/full 2>" + errors).c_str())) == 1);
  CHECK(test::ReadFile(errors).find("write the output (No space left on device)") != std::string::npos);
}

// One name that is no UTF-8 would make kvmd's replies unreadable for everybody. Fails where a
// model's name is a string in proto/wire/wire.proto, not bytes: seen.
TEST_CASE("kvctl: views, JSON and metrics can be read whatever name a client gives its model", "[integration]") {
  const Sandbox sandbox;
  const test::KvmdProcess kvmd({"--max-entries", "4096", "--host-cache", "64M"});
  ClientOptions client_options;
  client_options.socket_path = kvmd.socket();
  const Result<std::shared_ptr<Client>> client = Client::Connect(client_options);
  KVM_REQUIRE_OK(client);
  ModelSpec spec;
  spec.model_id =
      "\xff\xfe\xC2\x9B"
      "31m";
  spec.kv_dtype = "bfloat16";
  spec.layout = "NHD";
  spec.num_layers = spec.num_kv_heads = spec.head_size = spec.block_tokens = 4;
  const Result<Model> model = (*client)->DeclareModel(spec, After(std::chrono::seconds(5)));
  KVM_REQUIRE_OK(model);
  RegionOptions region_options;
  region_options.name = "pool";
  region_options.geometry = Geometry::Contiguous(16, 64);
  const Result<std::shared_ptr<Region>> region = (*client)->AllocateRegion(*model, region_options, After(std::chrono::seconds(5)));
  KVM_REQUIRE_OK(region);
  const std::string to_kvmd = "--socket " + kvmd.socket() + " ";
  for (const char* view : {"status", "clients", "regions", "models", "ls", "leases", "hot", "cache", "doctor"}) {
    INFO(view);
    const Sandbox::Output output = sandbox.Run(to_kvmd + "--json " + view);
    CHECK(output.code == 0);
    static_cast<void>(output.Json());
  }
  CHECK(sandbox.Run(to_kvmd + "--json models").out.find("\\ufffd\\ufffd\\u009b31m") != std::string::npos);
  const Sandbox::Output metrics = sandbox.Run("exporter --once --socket " + kvmd.socket());
  INFO(metrics.out);
  CHECK(metrics.code == 0);
  CHECK(metrics.out.find("kvmd_up 1") != std::string::npos);
  CHECK(metrics.out.find("kvmd_model_lookups_total{domain=\"uid-" + std::to_string(::geteuid()) + "\",model=\"???31m\"") !=
        std::string::npos);
}
