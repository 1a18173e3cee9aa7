// kvmd's settings. Each field is a command line option and a key of the TOML file (config.cc).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "daemon/policy/policies.h"
#include "daemon/system/log.h"
#include "kvm/error.h"
#include "proto/shm/layout.h"
#include "proto/wire/protocol_limits.h"

namespace kvm::daemon {

enum class DomainMode { kUid, kGid, kNode };

// Which blocks the host cache takes.
enum class HostCacheAdmission { kPublish, kSecondHit, kReuse };

// A [domain.NAME] of the configuration file: who is in it, and what differs from the options there.
struct DomainRule {
  std::string name;
  std::vector<std::uint32_t> uids, gids;  // users, and primary groups
  std::vector<std::uint32_t> admins;      // may reclaim all of its orphans
  std::optional<std::uint64_t> max_entries, max_host_cache;
  std::optional<std::uint32_t> max_regions, max_models, max_fds, max_orphans;
  bool orphans = true;        // false: the memory of a dead worker goes at once
  bool zero_on_free = false;  // blocks that leave the host cache are overwritten
};

struct Config {
  std::string socket_path = kDefaultSocketPath;
  std::string socket_mode = "0666";  // octal; what a client may see is the domain's business
  DomainMode domain_mode = DomainMode::kUid;
  std::uint64_t max_entries = 1'000'000;  // a domain
  std::uint32_t max_regions = 256;        // a domain
  std::uint32_t max_models = 64;          // a domain
  std::uint32_t max_domains = 16;
  std::uint32_t max_clients = 1024;
  std::uint32_t max_clients_per_user = 0;  // 0: a quarter of max_clients, at least 64
  std::uint32_t max_regions_per_client = 64;
  std::uint32_t max_regions_per_user = 0;  // of a domain; 0: see RegionsPerUser
  std::uint64_t max_blocks_per_client = std::uint64_t{64} << 20;
  std::uint64_t max_blocks_per_user = 0;   // 0: four times that of a client
  std::uint64_t max_entries_per_user = 0;  // of a domain; 0: all, others' shares come first
  std::uint32_t max_models_per_user = 0;   // of a domain; 0: see ModelsPerUser
  std::uint32_t max_fds_per_client = 512;
  std::uint32_t max_fds_per_user = 0;             // 0: see DescriptorQuota
  std::uint64_t max_granted_memory_per_user = 0;  // 0: as much as the machine has
  std::uint32_t max_fds_per_domain = 0;           // 0: by the process's own limit
  std::uint32_t max_replicas = layout::kMaxReplicas;
  std::uint32_t orphan_ttl_s = 300;  // 0: the memory of a dead worker goes at once
  std::uint32_t max_orphans = 64;    // a domain
  std::uint32_t reclaim_others_after_s = 30;
  // Users who may reclaim all orphans, beside root and kvmd's own
  std::vector<std::uint32_t> admins;
  std::uint32_t withdraw_timeout_ms = 1000;
  std::uint32_t hello_timeout_ms = 5000;
  std::uint32_t frame_timeout_ms = 10'000;
  std::uint64_t max_queue_bytes = std::uint64_t{64} << 20;
  std::uint64_t max_queue_bytes_per_user = std::uint64_t{256} << 20;
  std::uint32_t max_waiting_fds_per_user = 0;  // 0: by the process's own limit
  std::uint32_t sweep_interval_ms = 100;
  std::uint32_t sweep_slots = 16'384;
  std::uint32_t drain_timeout_ms = 1000;
  std::uint64_t host_cache_bytes = 0;       // 0: none
  std::uint64_t host_cache_slab_bytes = 0;  // 0: by the size of the cache
  policy::PolicyKind host_cache_policy = policy::PolicyKind::kHitDensity;
  HostCacheAdmission host_cache_admission = HostCacheAdmission::kPublish;
  std::uint64_t max_host_cache_per_domain = 0;  // 0: no limit but the size
  std::uint64_t max_host_cache_per_user = 0;
  std::uint64_t max_host_cache_per_client = 0;
  std::uint32_t offload_timeout_ms = 10'000;
  std::uint32_t max_lease_ttl_s = 300;
  std::uint32_t max_leases_per_client = 256;
  std::uint32_t max_leases_per_user = 0;  // 0: 16 times as many as of a client
  std::uint32_t max_leased_percent = 75;  // of the host cache: what leases of all may hold
  std::uint32_t max_leased_percent_per_domain = 50;
  std::uint32_t max_leased_percent_per_client = 25;
  std::uint32_t max_leased_orphans = 0;  // a domain; 0: half of max_orphans
  std::uint32_t max_mark_ttl_s = 60;
  std::uint32_t max_marked_keys_per_client = 1024;
  std::uint32_t max_marked_keys_per_user = 0;  // of a domain; 0: see MarkedKeysPerUser
  std::uint32_t max_log_lines_per_user = 20;   // a second
  LogLevel log_level = LogLevel::kInfo;
  bool zero_on_free = false;  // of a domain, by its section only
  std::vector<DomainRule> domains;
  std::string config_file;
  bool check_config = false;  // parse, report, exit
};

// How many domains there can be at a time.
inline std::uint32_t MostDomains(const Config& config) noexcept {
  return config.domain_mode == DomainMode::kNode ? 1 + static_cast<std::uint32_t>(config.domains.size()) : config.max_domains;
}

// What main should do after parsing.
struct ParsedArguments {
  Config config;
  bool exit = false;  // --help, --version, --check-config or an error: print has been done
  int exit_code = 0;
};

// Reads options and the file given with --config. Options win over the file. Unknown options and
// keys and bad values are refused with the option named, on stderr.
ParsedArguments ParseArguments(int argc, char** argv);

// The most connections of one user: --max-clients-per-user, or if that is 0 a quarter of
// --max-clients, at least 64.
std::uint32_t ConnectionsPerUser(const Config& config) noexcept;

// The most regions of one user in a domain: --max-regions-per-user, or if that is 0 all of
// --max-regions where a domain has one user, else three quarters of it.
std::uint32_t RegionsPerUser(const Config& config) noexcept;

// The most models of one user in a domain: --max-models-per-user, or if that is 0 the same parts of
// --max-models.
std::uint32_t ModelsPerUser(const Config& config) noexcept;

// The most keys of one user that are marked as being computed: --max-marked-keys-per-user, or if
// that is 0 the same parts of the table's `rows`.
std::uint32_t MarkedKeysPerUser(const Config& config, std::uint32_t rows) noexcept;

// The most blocks of one user's regions: --max-blocks-per-user, or if that is 0 four times
// --max-blocks-per-client.
std::uint64_t BlocksPerUser(const Config& config) noexcept;

// The log level that `file` sets, kInfo if it sets none. kInvalidArgument: the file can't be read,
// or something else in it is wrong.
[[nodiscard]] Result<LogLevel> ReadLogLevel(const std::string& file);

}  // namespace kvm::daemon
