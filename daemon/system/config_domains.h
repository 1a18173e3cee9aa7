// The [domain.NAME] sections of kvmd's configuration file.
//
// Called by config.cc while CLI11 reads the file: the formatter takes these sections out, and
// leaves all other keys to the options.
#pragma once

#include <CLI/CLI.hpp>
#include <istream>
#include <vector>

#include "daemon/system/config.h"

namespace kvm::daemon {

class ConfigWithDomains final : public CLI::ConfigTOML {
 public:
  // `rules` outlives the formatter.
  explicit ConfigWithDomains(std::vector<DomainRule>& rules) : rules_(rules) {}
  // Throws CLI::ParseError: an unknown key, a bad value, a domain without users and groups, a user
  // or a group that is in two domains, a name that kvmd gives to others or that is not lower-case
  // letters, digits, '-' and '_'.
  std::vector<CLI::ConfigItem> from_config(std::istream& input) const override;

 private:
  std::vector<DomainRule>& rules_;
};

// The rule of a process of this user and primary group; null: none names it. A rule that names the
// user wins over one that names the group.
const DomainRule* RuleFor(const Config& config, std::uint32_t uid, std::uint32_t gid) noexcept;

// The settings that hold in the domain of this name: those of kvmd, with what its rule changes.
Config SettingsOf(const Config& config, const std::string& domain);

}  // namespace kvm::daemon
