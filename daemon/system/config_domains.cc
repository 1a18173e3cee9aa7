#include "daemon/system/config_domains.h"

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>

namespace kvm::daemon {
namespace {

using Section = std::vector<std::pair<std::string, std::vector<std::string>>>;

constexpr const char* kSection = "domain";
constexpr std::size_t kMaxNameBytes = 32;

[[noreturn]] void Refuse(const std::string& name, const std::string& why) { throw CLI::ValidationError("[domain." + name + "]", why); }

void CheckName(const std::string& name) {
  const bool plain = !name.empty() && name.size() <= kMaxNameBytes &&
                     name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789-_") == std::string::npos;
  if (!plain) Refuse(name, "the name is not 1 to 32 lower-case letters, digits, '-' and '_'");
  if (name == "node" || name.starts_with("uid-") || name.starts_with("gid-")) Refuse(name, "kvmd names other domains so");
}

template <class T>
void Number(CLI::App& app, const std::string& name, std::optional<T>& field, T low, T high) {
  app.add_option_function<T>(name, [&field](const T& value) { field = value; })->check(CLI::Range(low, high));
}

DomainRule ParseRule(const std::string& name, const Section& section) {
  CheckName(name);
  DomainRule rule;
  rule.name = name;
  CLI::App app;
  app.set_help_flag();
  app.add_option("--uids", rule.uids);
  app.add_option("--gids", rule.gids);
  app.add_option("--admins", rule.admins);
  Number<std::uint64_t>(app, "--max-entries", rule.max_entries, 64, std::uint64_t{1} << 30);
  Number<std::uint32_t>(app, "--max-regions", rule.max_regions, 1, 65'535);
  Number<std::uint32_t>(app, "--max-models", rule.max_models, 1, 65'535);
  Number<std::uint32_t>(app, "--max-fds", rule.max_fds, 1, 100'000'000);
  Number<std::uint32_t>(app, "--max-orphans", rule.max_orphans, 0, 65'535);
  app.add_option_function<std::uint64_t>("--max-host-cache", [&](const std::uint64_t& bytes) { rule.max_host_cache = bytes; })
      ->transform(CLI::AsSizeValue(false));
  app.add_option("--orphans", rule.orphans);
  app.add_option("--zero-on-free", rule.zero_on_free);
  std::vector<std::string> arguments;
  for (const auto& [key, values] : section) {
    if (app.get_option_no_throw("--" + key) == nullptr) Refuse(name, "--" + key + ": a domain has no such option");
    arguments.push_back("--" + key);
    arguments.insert(arguments.end(), values.begin(), values.end());
  }
  std::reverse(arguments.begin(), arguments.end());  // CLI11 takes them from the back
  try {
    app.parse(std::move(arguments));
  } catch (const CLI::ParseError& error) {
    Refuse(name, error.what());
  }
  if (rule.uids.empty() && rule.gids.empty()) Refuse(name, "it has neither uids nor gids, so no process is in it");
  return rule;
}

// A process is in one domain.
void CheckDisjoint(const std::vector<DomainRule>& rules) {
  std::set<std::uint32_t> uids, gids;
  for (const DomainRule& rule : rules) {
    for (const std::uint32_t uid : rule.uids) {
      if (!uids.insert(uid).second) Refuse(rule.name, "user " + std::to_string(uid) + " is named twice");
    }
    for (const std::uint32_t gid : rule.gids) {
      if (!gids.insert(gid).second) Refuse(rule.name, "group " + std::to_string(gid) + " is named twice");
    }
  }
}

}  // namespace

std::vector<CLI::ConfigItem> ConfigWithDomains::from_config(std::istream& input) const {
  std::vector<CLI::ConfigItem> all = CLI::ConfigTOML::from_config(input), others;
  std::map<std::string, Section> sections;
  for (CLI::ConfigItem& item : all) {
    if (item.parents.empty() || item.parents.front() != kSection) {
      others.push_back(std::move(item));
      continue;
    }
    const bool border = item.name == "++" || item.name == "--";  // of a section, as CLI11 shows it
    if (item.parents.size() > 2 || (item.parents.size() < 2 && !border)) Refuse(item.fullname(), "expected: [domain.NAME]");
    if (item.parents.size() < 2) continue;
    Section& section = sections[item.parents[1]];
    if (!border) section.emplace_back(item.name, std::move(item.inputs));
  }
  // CLI11 would take the first and say nothing.
  std::set<std::string> names;
  for (const CLI::ConfigItem& item : others) {
    const bool border = item.name == "++" || item.name == "--";
    if (!border && !names.insert(item.fullname()).second) throw CLI::ValidationError("--" + item.fullname(), "the key is there twice");
  }
  rules_.clear();
  for (const auto& [name, section] : sections) rules_.push_back(ParseRule(name, section));
  CheckDisjoint(rules_);
  return others;
}

const DomainRule* RuleFor(const Config& config, std::uint32_t uid, std::uint32_t gid) noexcept {
  const auto names = [](const std::vector<std::uint32_t>& ids, std::uint32_t id) {
    return std::find(ids.begin(), ids.end(), id) != ids.end();
  };
  for (const DomainRule& rule : config.domains) {
    if (names(rule.uids, uid)) return &rule;
  }
  for (const DomainRule& rule : config.domains) {
    if (names(rule.gids, gid)) return &rule;
  }
  return nullptr;
}

Config SettingsOf(const Config& config, const std::string& domain) {
  Config settings = config;
  for (const DomainRule& rule : config.domains) {
    if (rule.name != domain) continue;
    settings.domain_mode = rule.uids.size() == 1 && rule.gids.empty() ? DomainMode::kUid : DomainMode::kGid;
    settings.max_entries = rule.max_entries.value_or(config.max_entries);
    settings.max_regions = rule.max_regions.value_or(config.max_regions);
    settings.max_models = rule.max_models.value_or(config.max_models);
    settings.max_fds_per_domain = rule.max_fds.value_or(config.max_fds_per_domain);
    settings.max_orphans = rule.max_orphans.value_or(config.max_orphans);
    settings.max_host_cache_per_domain = rule.max_host_cache.value_or(config.max_host_cache_per_domain);
    if (!rule.orphans) settings.orphan_ttl_s = 0;
    settings.zero_on_free = rule.zero_on_free;
    settings.admins.insert(settings.admins.end(), rule.admins.begin(), rule.admins.end());
  }
  return settings;
}

}  // namespace kvm::daemon
