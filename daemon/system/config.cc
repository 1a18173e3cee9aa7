#include "daemon/system/config.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <fstream>
#include <iostream>
#include <map>
#include <sstream>
#include <vector>

#include "daemon/system/config_check.h"
#include "daemon/system/config_domains.h"
#include "daemon/system/option_names.h"

namespace kvm::daemon {
namespace {

const std::map<std::string, DomainMode> kDomainModes{{"uid", DomainMode::kUid}, {"gid", DomainMode::kGid}, {"node", DomainMode::kNode}};

// Of an option whose values have names elsewhere, too.
template <class T, std::size_t kCount, class NameOf>
std::map<std::string, T> ByName(const std::array<T, kCount>& values, NameOf&& name_of) {
  std::map<std::string, T> by_name;
  for (const T value : values) by_name.emplace(name_of(value), value);
  return by_name;
}
const std::map<std::string, LogLevel> kLogLevels =
    ByName(std::array{LogLevel::kError, LogLevel::kWarn, LogLevel::kInfo, LogLevel::kDebug}, LogLevelName);
const std::map<std::string, HostCacheAdmission> kAdmissions =
    ByName(std::array{HostCacheAdmission::kPublish, HostCacheAdmission::kSecondHit, HostCacheAdmission::kReuse}, AdmissionName);
const std::map<std::string, policy::PolicyKind> kPolicies = ByName(policy::kAllPolicies, policy::PolicyName);

const CLI::Validator kOctalMode(
    [](std::string& text) -> std::string {
      const bool octal = !text.empty() && text.size() <= 4 && text.find_first_not_of("01234567") == std::string::npos;
      return octal ? "" : "is not an octal file mode such as 0660: " + text;
    },
    "OCTAL");

template <class T>
CLI::Option* Number(CLI::App& app, const std::string& name, T& field, const std::string& help, T low, T high) {
  return app.add_option(name, field, help)->check(CLI::Range(low, high))->capture_default_str();
}

// Bytes, with K, M, G or T for powers of 1024.
void Size(CLI::App& app, const std::string& name, std::uint64_t& field, const std::string& help) {
  app.add_option(name, field, help)->transform(CLI::AsSizeValue(false))->default_str("0")->type_name("SIZE");
}

void AddHostCacheOptions(CLI::App& app, Config& c) {
  Size(app, "--host-cache", c.host_cache_bytes, "Host memory in which kvmd keeps copies of blocks (64G); 0: none");
  app.add_option("--host-cache-policy", c.host_cache_policy, "Which block leaves a full host cache: hit-density, lru or s3-fifo")
      ->transform(CLI::CheckedTransformer(kPolicies, CLI::ignore_case))
      ->default_str(std::string(policy::PolicyName(c.host_cache_policy)));
  app.add_option("--host-cache-admission", c.host_cache_admission,
                 "Which blocks it takes: all that are published (publish), those published a second time (second-hit), or those about to "
                 "be overwritten (reuse)")
      ->transform(CLI::CheckedTransformer(kAdmissions, CLI::ignore_case))
      ->default_str(std::string(AdmissionName(c.host_cache_admission)));
  Size(app, "--host-cache-slab", c.host_cache_slab_bytes, "Memory that one worker at a time may write; 0: by the size of the cache");
  Size(app, "--max-host-cache-per-domain", c.max_host_cache_per_domain, "Host cache a domain may have; 0: all");
  Size(app, "--max-host-cache-per-user", c.max_host_cache_per_user, "Host cache all clients of a user may write; 0: all");
  Size(app, "--max-host-cache-per-client", c.max_host_cache_per_client, "Host cache a client may write; 0: all");
  Number<std::uint32_t>(app, "--offload-timeout-ms", c.offload_timeout_ms, "How long a worker may take to copy a block into its slot", 1,
                        600'000);
}

void AddLeaseOptions(CLI::App& app, Config& c) {
  Number<std::uint32_t>(app, "--max-lease-ttl-s", c.max_lease_ttl_s, "The longest time of a lease; its holder can renew it", 1, 86'400);
  Number<std::uint32_t>(app, "--max-leases-per-client", c.max_leases_per_client, "Leases a client may have; 0: there are none", 0, 65'535);
  Number<std::uint32_t>(app, "--max-leases-per-user", c.max_leases_per_user,
                        "Leases all clients of a user may have; 0: 16 times --max-leases-per-client", 0, 1'048'560);
  Number<std::uint32_t>(app, "--max-leased-percent", c.max_leased_percent, "How much of the host cache all leases may cover, in percent", 0,
                        100);
  Number<std::uint32_t>(app, "--max-leased-percent-per-domain", c.max_leased_percent_per_domain,
                        "How much of the host cache, and of the domain's entries, leases of a domain may cover, in percent", 0, 100);
  Number<std::uint32_t>(app, "--max-leased-percent-per-client", c.max_leased_percent_per_client,
                        "How much of the host cache, and of the domain's entries, leases of a client may cover, in percent", 0, 100);
  Number<std::uint32_t>(
      app, "--max-leased-orphans", c.max_leased_orphans,
      "Regions of dead workers that leases may keep in a domain; 0: half of --max-orphans, at most a quarter of --max-regions", 0, 65'535);
}

void AddMarkOptions(CLI::App& app, Config& c) {
  Number<std::uint32_t>(app, "--max-mark-ttl-s", c.max_mark_ttl_s, "The longest time for which a key is marked as being computed", 1, 3600);
  Number<std::uint32_t>(app, "--max-marked-keys-per-client", c.max_marked_keys_per_client,
                        "Keys that a client may mark as being computed; 0: none", 0, 65'535);
  Number<std::uint32_t>(app, "--max-marked-keys-per-user", c.max_marked_keys_per_user,
                        "Keys that a user may mark so in a domain; 0: all of the table's, or three quarters where others are in it", 0,
                        65'535);
}

void AddOptions(CLI::App& app, Config& c) {
  app.add_option("--socket", c.socket_path, "Unix socket to listen on (ignored when systemd passes one)")->capture_default_str();
  app.add_option("--socket-mode", c.socket_mode, "File mode of the socket, octal")->check(kOctalMode)->capture_default_str();
  app.add_option("--domain-mode", c.domain_mode, "Who shares with whom: clients of one user (uid), of one group (gid), or all (node)")
      ->transform(CLI::CheckedTransformer(kDomainModes, CLI::ignore_case))
      ->default_str("uid");
  Number<std::uint64_t>(app, "--max-entries", c.max_entries, "Published blocks a domain may have; 90 bytes of memory each", 64,
                        std::uint64_t{1} << 30);
  Number<std::uint32_t>(app, "--max-regions", c.max_regions, "Regions a domain may have", 1, 65'535);
  Number<std::uint32_t>(app, "--max-models", c.max_models, "Models a domain may have; 2 KiB each", 1, 65'535);
  Number<std::uint32_t>(app, "--max-domains", c.max_domains, "Domains; each has a registry of its own", 1, 4096);
  Number<std::uint32_t>(app, "--max-clients", c.max_clients, "Connections", 1, 1'000'000);
  Number<std::uint32_t>(app, "--max-clients-per-user", c.max_clients_per_user,
                        "Connections of one user; 0: a quarter of --max-clients, at least 64", 0, 1'000'000);
  Number<std::uint32_t>(app, "--max-regions-per-client", c.max_regions_per_client, "Regions a client may have", 1, 65'535);
  Number<std::uint32_t>(app, "--max-regions-per-user", c.max_regions_per_user,
                        "Regions a user may have in a domain; 0: all, or three quarters of --max-regions where others are in it", 0,
                        65'535);
  Number<std::uint64_t>(app, "--max-blocks-per-client", c.max_blocks_per_client, "Blocks all regions of a client may have together", 1,
                        std::uint64_t{1} << 36);
  Number<std::uint64_t>(app, "--max-blocks-per-user", c.max_blocks_per_user,
                        "Blocks all regions of a user may have together in a domain; 0: four times --max-blocks-per-client", 0,
                        std::uint64_t{1} << 40);
  Number<std::uint64_t>(app, "--max-entries-per-user", c.max_entries_per_user,
                        "Published blocks a user may have in a domain; 0: all that others leave of their shares", 0,
                        std::uint64_t{1} << 30);
  Number<std::uint32_t>(app, "--max-models-per-user", c.max_models_per_user,
                        "Models a user may have in a domain; 0: all, or three quarters of --max-models where others are in it", 0, 65'535);
  Number<std::uint32_t>(app, "--max-fds-per-client", c.max_fds_per_client, "Descriptors kvmd keeps for a client", 1, 1'000'000);
  Number<std::uint32_t>(app, "--max-fds-per-user", c.max_fds_per_user,
                        "Descriptors kvmd keeps for a user in all domains; 0: all of a domain's, or three quarters where others are in it",
                        0, 100'000'000);
  Size(app, "--max-granted-memory-per-user", c.max_granted_memory_per_user,
       "Memory that kvmd has made for a user and that a process may still write; 0: as much as the machine has");
  Number<std::uint32_t>(app, "--max-fds-per-domain", c.max_fds_per_domain,
                        "Descriptors kvmd keeps for a domain; 0: half of kvmd's own limit minus those of the connections", 0, 100'000'000);
  Number<std::uint32_t>(app, "--max-replicas", c.max_replicas, "Copies of one block that are indexed", 1, layout::kMaxReplicas);
  Number<std::uint32_t>(app, "--orphan-ttl-s", c.orphan_ttl_s,
                        "How long kvmd keeps the memory of a dead worker, for importers and for the worker that adopts it; 0: not at all",
                        0, 31'536'000);
  Number<std::uint32_t>(app, "--max-orphans", c.max_orphans,
                        "Regions of dead workers that kvmd keeps in a domain; further ones replace the oldest", 0, 65'535);
  Number<std::uint32_t>(app, "--reclaim-others-after-s", c.reclaim_others_after_s,
                        "How long only its own user may reclaim the memory of a dead worker; then each worker that needs the device", 0,
                        31'536'000);
  app.add_option("--admins", c.admins, "Users (numbers) who may reclaim all memory of dead workers, beside root and kvmd's own user")
      ->delimiter(',');
  Number<std::uint32_t>(app, "--withdraw-timeout-ms", c.withdraw_timeout_ms,
                        "How long an unregistering client waits for importers to unmap", 1, 600'000);
  Number<std::uint32_t>(app, "--hello-timeout-ms", c.hello_timeout_ms, "How long a connection may take to say hello", 1, 600'000);
  Number<std::uint32_t>(app, "--frame-timeout-ms", c.frame_timeout_ms, "How long a half-sent message may take to arrive", 1, 600'000);
  Number<std::uint64_t>(app, "--max-queue-bytes", c.max_queue_bytes,
                        "Bytes that may wait for a client that does not read, before kvmd drops it", 65'536, std::uint64_t{1} << 40);
  Number<std::uint64_t>(app, "--max-queue-bytes-per-user", c.max_queue_bytes_per_user,
                        "Bytes that may wait for all connections of a user, half-sent messages included", 2'097'152,
                        std::uint64_t{1} << 40);
  Number<std::uint32_t>(app, "--max-waiting-fds-per-user", c.max_waiting_fds_per_user,
                        "Descriptors that may wait with them; 0: an eighth of kvmd's own limit, at most 16,384", 0, 1'000'000);
  Number<std::uint32_t>(app, "--sweep-interval-ms", c.sweep_interval_ms, "Pause between two searches for rewritten blocks", 1, 600'000);
  Number<std::uint32_t>(app, "--sweep-slots", c.sweep_slots, "Index slots of one search", 1, 1u << 30);
  Number<std::uint32_t>(app, "--drain-timeout-ms", c.drain_timeout_ms, "How long SIGTERM waits for replies to be taken", 0, 600'000);
  AddHostCacheOptions(app, c);
  AddLeaseOptions(app, c);
  AddMarkOptions(app, c);
  Number<std::uint32_t>(app, "--max-log-lines-per-user", c.max_log_lines_per_user,
                        "Log lines a second that one user may cause for long; ten times as many at once", 1, 100'000);
  app.add_option("--log-level", c.log_level, "error, warn, info or debug")
      ->transform(CLI::CheckedTransformer(kLogLevels, CLI::ignore_case))
      ->default_str(std::string(LogLevelName(c.log_level)));
}

void AddConfigFile(CLI::App& app, Config& config) {
  app.config_formatter(std::make_shared<ConfigWithDomains>(config.domains));
  app.set_config("--config", "", "TOML file with the options below, without the dashes in front (max-entries = 1000000)");
  app.allow_config_extras(CLI::config_extras_mode::error);
}

// What is wrong with the text of a configuration file; empty: nothing.
std::string FaultIn(const std::string& text) {
  CLI::App app;
  Config config;
  AddConfigFile(app, config);
  AddOptions(app, config);
  std::istringstream input(text);
  try {
    app.parse_from_stream(input);
  } catch (const CLI::ConfigError&) {
    return "kvmd has no such option";
  } catch (const CLI::ParseError& error) {
    return error.what();
  }
  return "";
}

// Prints every fault of the file as FILE:LINE: OPTION: what, as compilers do; false: there is none.
bool PrintFaults(const std::string& file) {
  std::ifstream input(file);
  std::ostringstream text;
  text << input.rdbuf();
  const std::vector<ConfigFault> faults = FaultsOf(text.str(), FaultIn);
  for (const ConfigFault& fault : faults)
    std::cerr << file << ':' << fault.line << ": " << (fault.option.empty() ? "" : fault.option + ": ") << fault.what << '\n';
  return !faults.empty();
}

}  // namespace

ParsedArguments ParseArguments(int argc, char** argv) {
  ParsedArguments out;
  CLI::App app{"kvmd: registry and descriptor broker for KV cache blocks shared between the processes of a node", "kvmd"};
  app.set_version_flag("--version", std::string("kvmd ") + KVM_VERSION);
  AddConfigFile(app, out.config);
  AddOptions(app, out.config);
  const CLI::Option* check =
      app.add_flag("--check-config", out.config.check_config, "Check options and file, name every fault, then exit")->configurable(false);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    out.exit = true;
    out.exit_code = 1;
    const CLI::Option* file = app.get_config_ptr();
    if (check->count() > 0 && file != nullptr && file->count() > 0 && PrintFaults(file->as<std::string>())) return out;
    out.exit_code = app.exit(error, std::cout, std::cerr) == 0 ? 0 : 1;
    return out;
  }
  if (const CLI::Option* file = app.get_config_ptr(); file != nullptr && file->count() > 0)
    out.config.config_file = file->as<std::string>();
  if (out.config.check_config) {
    std::cout << "kvmd: configuration is good\n";
    out.exit = true;
  }
  return out;
}

Result<LogLevel> ReadLogLevel(const std::string& file) {
  CLI::App app;
  Config config;
  AddConfigFile(app, config);
  AddOptions(app, config);
  try {
    app.parse(std::vector<std::string>{file, "--config"});  // CLI11 takes them from the back
  } catch (const CLI::ParseError& error) {
    return MakeError(Errc::kInvalidArgument, error.what());
  }
  return config.log_level;
}

namespace {

// What one user may have of a table of a domain, so that no user can fill it for the others.
std::uint32_t PartOfUser(const Config& config, std::uint32_t all) noexcept {
  return config.domain_mode == DomainMode::kUid ? all : std::max(1u, all - all / 4);
}

}  // namespace

std::uint32_t RegionsPerUser(const Config& config) noexcept {
  return config.max_regions_per_user != 0 ? config.max_regions_per_user : PartOfUser(config, config.max_regions);
}

std::uint32_t ModelsPerUser(const Config& config) noexcept {
  return config.max_models_per_user != 0 ? config.max_models_per_user : PartOfUser(config, config.max_models);
}

std::uint32_t MarkedKeysPerUser(const Config& config, std::uint32_t rows) noexcept {
  return config.max_marked_keys_per_user != 0 ? config.max_marked_keys_per_user : PartOfUser(config, rows);
}

std::uint64_t BlocksPerUser(const Config& config) noexcept {
  return config.max_blocks_per_user != 0 ? config.max_blocks_per_user : 4 * config.max_blocks_per_client;
}

std::uint32_t ConnectionsPerUser(const Config& config) noexcept {
  // Enough for the workers of a node and for looking at them, where --max-clients is small.
  constexpr std::uint32_t kLeast = 64;
  return config.max_clients_per_user != 0 ? config.max_clients_per_user : std::max(config.max_clients / 4, kLeast);
}

}  // namespace kvm::daemon
