// Commands of kvctl that run other programs: config check, which asks kvmd's, and support-bundle,
// which collects what a report of a fault needs.
#pragma once

#include <string>

#include "client/kvctl/cli/common_options.h"

namespace kvm::ctl {

struct ConfigCheckOptions {
  std::string file;
  std::string kvmd;  // program; empty: beside kvctl, or of PATH
};
int RunConfigCheck(const CommonOptions& common, const ConfigCheckOptions& options);

struct SupportBundleOptions {
  std::string output;                          // file; empty: kvmd-support-TIME.tar here
  std::string config = "/etc/kvmd/kvmd.toml";  // of the node's kvmd
  std::string kvmd;                            // as above
};
int RunSupportBundle(const CommonOptions& common, const SupportBundleOptions& options);

}  // namespace kvm::ctl
