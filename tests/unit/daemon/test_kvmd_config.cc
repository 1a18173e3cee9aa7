// Options, the configuration file, log lines, the listening socket.
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <sstream>

#include "daemon/registry/descriptor_quota.h"
#include "daemon/server/listener.h"
#include "daemon/system/config.h"
#include "daemon/system/log.h"
#include "tests/catch.h"

namespace kvm::daemon {
namespace {

struct Directory {
  Directory() {
    std::string pattern = std::filesystem::temp_directory_path() / "kvmd-test-XXXXXX";
    REQUIRE(::mkdtemp(pattern.data()) != nullptr);
    path = pattern;
  }
  ~Directory() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
  std::string Write(const std::string& name, const std::string& text) const {
    std::ofstream(path + "/" + name) << text;
    return path + "/" + name;
  }
  std::string path;
};

struct Parsed {
  ParsedArguments arguments;
  std::string out, err;
};

Parsed Parse(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "kvmd");
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  std::ostringstream out, err;
  std::streambuf* const old_out = std::cout.rdbuf(out.rdbuf());
  std::streambuf* const old_err = std::cerr.rdbuf(err.rdbuf());
  Parsed parsed;
  parsed.arguments = ParseArguments(static_cast<int>(argv.size()), argv.data());
  std::cout.rdbuf(old_out);
  std::cerr.rdbuf(old_err);
  parsed.out = out.str();
  parsed.err = err.str();
  return parsed;
}

TEST_CASE("kvmd options: the command line wins over the file, the file over the defaults", "[unit]") {
  const Directory directory;
  const std::string file = directory.Write("kvmd.toml",
                                           "# a comment\nmax-entries = 5000\nmax-regions = 7\ndomain-mode = \"node\"\n"
                                           "log-level = \"debug\"\nsocket = \"/tmp/from-file.sock\"\nsocket-mode = \"0600\"\n");
  const Parsed parsed = Parse({"--config", file, "--max-regions", "9"});
  INFO(parsed.err);
  REQUIRE_FALSE(parsed.arguments.exit);
  const Config& config = parsed.arguments.config;
  CHECK(config.max_entries == 5000);
  CHECK(config.max_regions == 9);
  CHECK(config.max_models == Config().max_models);
  CHECK(config.domain_mode == DomainMode::kNode);
  CHECK(config.log_level == LogLevel::kDebug);
  CHECK(config.socket_path == "/tmp/from-file.sock");
  CHECK(config.socket_mode == "0600");
  CHECK(config.config_file == file);
}

TEST_CASE("kvmd options: bad values are refused with the option named", "[unit]") {
  const auto [option, value] = GENERATE(table<std::string, std::string>({{"--max-entries", "0"},
                                                                         {"--max-entries", "many"},
                                                                         {"--max-entries", "-1"},
                                                                         {"--max-entries", "99999999999999999999"},
                                                                         {"--max-replicas", "9"},
                                                                         {"--socket-mode", "rw"},
                                                                         {"--socket-mode", "0999"},
                                                                         {"--domain-mode", "everybody"},
                                                                         {"--log-level", "loud"},
                                                                         {"--sweep-slots", "1.5"},
                                                                         {"--max-queue-bytes", "1"}}));
  CAPTURE(option, value);
  const Parsed parsed = Parse({option, value});
  CHECK(parsed.arguments.exit);
  CHECK(parsed.arguments.exit_code == 1);
  CHECK(parsed.err.find(option) != std::string::npos);

  const Directory directory;
  const std::string key = option.substr(2);
  const std::string file = directory.Write("kvmd.toml", key + " = \"" + value + "\"\n");
  const Parsed from_file = Parse({"--config", file});
  CHECK(from_file.arguments.exit_code == 1);
  CHECK(from_file.err.find(key) != std::string::npos);
}

TEST_CASE("kvmd options: unknown options and keys and missing files are refused", "[unit]") {
  const Directory directory;
  const Parsed option = Parse({"--max-entires", "5"});
  CHECK(option.arguments.exit_code == 1);
  CHECK(option.err.find("--max-entires") != std::string::npos);
  const Parsed key = Parse({"--config", directory.Write("kvmd.toml", "max-entires = 5\n")});
  CHECK(key.arguments.exit_code == 1);
  CHECK(key.err.find("max-entires") != std::string::npos);
  const Parsed file = Parse({"--config", directory.path + "/missing.toml"});
  CHECK(file.arguments.exit_code == 1);
  CHECK(file.err.find("missing.toml") != std::string::npos);
}

TEST_CASE("kvmd options: every option is in --help", "[unit]") {
  const Parsed parsed = Parse({"--help"});
  CHECK(parsed.arguments.exit);
  CHECK(parsed.arguments.exit_code == 0);
  for (const char* option : {"--socket",
                             "--socket-mode",
                             "--domain-mode",
                             "--max-entries",
                             "--max-regions",
                             "--max-models",
                             "--max-domains",
                             "--max-clients",
                             "--max-clients-per-user",
                             "--max-regions-per-client",
                             "--max-regions-per-user",
                             "--max-blocks-per-client",
                             "--max-fds-per-client",
                             "--max-fds-per-domain",
                             "--max-lease-ttl-s",
                             "--max-leases-per-client",
                             "--max-leases-per-user",
                             "--max-leased-percent",
                             "--max-leased-percent-per-domain",
                             "--max-leased-percent-per-client",
                             "--max-leased-orphans",
                             "--max-mark-ttl-s",
                             "--max-marked-keys-per-client",
                             "--max-marked-keys-per-user",
                             "--max-replicas",
                             "--withdraw-timeout-ms",
                             "--hello-timeout-ms",
                             "--frame-timeout-ms",
                             "--max-queue-bytes",
                             "--max-queue-bytes-per-user",
                             "--max-waiting-fds-per-user",
                             "--max-log-lines-per-user",
                             "--sweep-interval-ms",
                             "--sweep-slots",
                             "--drain-timeout-ms",
                             "--log-level",
                             "--config",
                             "--check-config",
                             "--version"}) {
    CAPTURE(option);
    CHECK(parsed.out.find(option) != std::string::npos);
  }
}

TEST_CASE("kvmd options: how many descriptors are for regions follows from the process's limit, connections first", "[unit]") {
  Config config;
  config.max_clients = 1000;
  const DescriptorQuota quota(config, false, 262'144);
  CHECK(quota.max() == 262'144 - 2'064 - 16'384);  // and what may wait for one user
  CHECK(quota.max_of_domain() == quota.max() / 2);
  CHECK(DescriptorQuota(config, true, 262'144).max() == quota.max() / 2);  // the store's copies
  // However many connections there may be, half of the limit is for regions.
  CHECK(DescriptorQuota(config, false, 1024).max_of_domain() == 256);
  CHECK(DescriptorQuota(config, false, 100).max_of_domain() == 64);
  config.max_fds_per_domain = 7;
  CHECK(DescriptorQuota(config, false, 262'144).max_of_domain() == 7);
}

// Without the store's size in DescriptorQuota a domain may have more than the store takes, and what
// another one has is lost at the next restart: seen.
TEST_CASE("kvmd options: regions have no more descriptors than the service manager's store takes", "[unit]") {
  const Config config;
  const DescriptorQuota unlimited(config, true), quota(config, true, std::optional<std::uint64_t>(400));
  REQUIRE(unlimited.max() > 400);
  CHECK(quota.max() == 300);  // manifests and registries are stored as well
  CHECK(quota.max_of_domain() == 150);
  CHECK(DescriptorQuota(config, false, std::optional<std::uint64_t>(400)).max() > 400);
}

TEST_CASE("kvmd options: the log level can be read again, from a good file only", "[unit]") {
  const Directory directory;
  const Result<LogLevel> level = ReadLogLevel(directory.Write("a.toml", "log-level = \"warn\"\nmax-entries = 100\n"));
  KVM_REQUIRE_OK(level);
  CHECK(*level == LogLevel::kWarn);
  const Result<LogLevel> unset = ReadLogLevel(directory.Write("b.toml", "max-entries = 100\n"));
  KVM_REQUIRE_OK(unset);
  CHECK(*unset == LogLevel::kInfo);
  KVM_CHECK_ERROR(ReadLogLevel(directory.Write("c.toml", "log-level = \"loud\"\n")), Errc::kInvalidArgument, "log-level");
  KVM_CHECK_ERROR(ReadLogLevel(directory.path + "/none.toml"), Errc::kInvalidArgument, "none.toml");
}

TEST_CASE("kvmd socket: a stale file is replaced, a living kvmd and other files are not", "[unit]") {
  const Directory directory;
  const std::string path = directory.path + "/kvmd.sock";
  {
    // A killed kvmd leaves a bound socket file on which no process answers.
    const UniqueFd dead(::socket(AF_UNIX, SOCK_STREAM, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strcpy(address.sun_path, path.c_str());
    REQUIRE(::bind(dead.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
  }
  {
    Result<Listener> listener = Listener::Open(path, "0640");
    KVM_REQUIRE_OK(listener);
    struct stat info {};
    REQUIRE(::stat(path.c_str(), &info) == 0);
    CHECK((info.st_mode & 0777) == 0640);
    KVM_CHECK_ERROR(Listener::Open(path, "0666"), Errc::kAlreadyExists, "another kvmd answers");
    Listener moved = std::move(*listener);
    CHECK(std::filesystem::exists(path));
  }
  CHECK_FALSE(std::filesystem::exists(path));
  KVM_CHECK_ERROR(Listener::Open(directory.Write("file", "x"), "0666"), Errc::kAlreadyExists, "not a socket");
  KVM_CHECK_ERROR(Listener::Open(directory.path + "/none/kvmd.sock", "0666"), Errc::kSystem, "directory");
  KVM_CHECK_ERROR(Listener::Open(directory.path + "/" + std::string(200, 'x'), "0666"), Errc::kInvalidArgument, "bytes");
  KVM_CHECK_ERROR(Listener::Open("", "0666"), Errc::kInvalidArgument, "bytes");
  KVM_CHECK_ERROR(Listener::FromFd(UniqueFd(::open("/dev/null", O_RDONLY))), Errc::kInvalidArgument, "service manager");
}

TEST_CASE("kvmd socket: kvmd does not remove another process's socket file when it ends", "[unit]") {
  const Directory directory;
  const std::string path = directory.path + "/kvmd.sock";
  Result<Listener> first = Listener::Open(path, "0666");
  KVM_REQUIRE_OK(first);
  std::filesystem::remove(path);
  const Result<Listener> second = Listener::Open(path, "0666");
  KVM_REQUIRE_OK(second);
  first->RemoveFile();
  CHECK(std::filesystem::exists(path));
}

}  // namespace
}  // namespace kvm::daemon
