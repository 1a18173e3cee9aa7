// The commands that show the state of a kvmd. Each prints to stdout and returns kvctl's exit code.
// They read the registry while kvmd writes it, so each row is consistent, but the rows need not be
// of the same moment.
#pragma once

#include <cstdint>
#include <string>

#include "client/kvctl/cli/common_options.h"
#include "client/kvctl/views/key_query.h"

namespace kvm::ctl {

int RunStatus(const CommonOptions& common);
int RunClients(const CommonOptions& common);
int RunRegions(const CommonOptions& common);
int RunModels(const CommonOptions& common);
int RunLeases(const CommonOptions& common);
int RunDrain(const CommonOptions& common);

struct HotOptions {
  std::uint64_t limit = 20;  // rows; 0 for all
};
int RunHot(const CommonOptions& common, const HotOptions& options);

struct CacheOptions {
  enum class By { kWorker, kUser, kModel, kDomain };
  By by = By::kWorker;
};
int RunCache(const CommonOptions& common, const CacheOptions& options);

struct VerifyOptions {
  std::uint32_t sample = 256;    // blocks
  std::uint32_t pause_ms = 200;  // between the two readings
  std::string model;             // row, model_id or fingerprint; empty for all
  std::string region;            // row or name; empty for all
};
int RunVerify(const CommonOptions& common, const VerifyOptions& options);

struct TopoOptions {
  bool measure = false;
};
int RunTopo(const CommonOptions& common, const TopoOptions& options);

struct LsOptions {
  std::string model;         // row, model_id or fingerprint; empty for all
  std::string region;        // row or name; empty for all
  std::string prefix;        // key in hex: only this block and its descendants; empty for all
  std::uint64_t limit = 50;  // 0 for all
};
int RunLs(const CommonOptions& common, const LsOptions& options);

struct ReclaimCommandOptions {
  std::string region;  // name; empty for any
  std::string device;  // "host" or a GPU's UUID; empty for any
  std::uint32_t older_than_s = 0;
  bool all = false;    // allows a call without any of the other filters
  bool force = false;  // also regions with leased blocks
};
int RunReclaim(const CommonOptions& common, const ReclaimCommandOptions& options);

struct EvictOptions {
  std::string model;   // model_id, or at least six digits of a fingerprint; empty for any
  std::string key;     // in hex: this block and those behind it; empty for any
  std::string domain;  // empty for all that this user administers
  bool all = false;    // allows a call without model and key
};
int RunEvict(const CommonOptions& common, const EvictOptions& options);

struct FindCommandOptions {
  KeyQueryOptions query;
  std::uint64_t limit = 50;  // rows of the table; 0 for all
};
int RunFind(const CommonOptions& common, const FindCommandOptions& options);
int RunExplain(const CommonOptions& common, const KeyQueryOptions& query);

struct ExplainLastOptions {
  bool wanted = false;
  std::string worker;  // name or pid; empty for all
};
int RunExplainLast(const CommonOptions& common, const ExplainLastOptions& options);

}  // namespace kvm::ctl
