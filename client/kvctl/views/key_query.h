// KeyQuery: converts an operator's input to block keys. The input is keys in hex, or token ids with
// their model, shard and extra keys.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "client/kvctl/cli/registry_tables.h"

namespace CLI {
class App;
}

namespace kvm::ctl {

struct KeyQueryOptions {
  std::string keys;             // HEX,HEX…
  std::string tokens;           // 1,2,3…
  std::string tokens_file;      // the same, or a JSON array, from a file; "-" for stdin
  std::string model_spec_file;  // JSON object or name=value lines, names as in ModelSpec
  std::string fingerprint;      // of a declared model, at least six digits
  std::string model;            // of a declared model: row, model_id or fingerprint
  std::string shard;            // tp_rank/tp_size[/pp_rank/pp_size[/kv_group]]
  std::string lora;
  std::string salt;
};

struct KeyQuery {
  std::vector<BlockKey> keys;
  // The following are set only if tokens were given.
  std::optional<ModelSpec> spec;
  Shard shard;
  std::vector<ExtraKey> extras;
  std::vector<std::uint32_t> tokens;

  // Keys of the same tokens under another model, shard or set of extra keys.
  std::vector<BlockKey> KeysFor(const ModelSpec& other_spec, const Shard& other_shard, const std::vector<ExtraKey>& other_extras) const;
};

// Adds an option for each member; `query` outlives the command. Defined in options_views.cc.
void AddKeyOptions(CLI::App& command, KeyQueryOptions& query);

// kInvalidArgument: options that contradict each other, or text that can't be read; the option or
// the file and line is named. kNotFound: no such file or declared model.
[[nodiscard]] Result<KeyQuery> ResolveKeys(const KeyQueryOptions& options, const std::vector<ModelEntry>& declared);

// Parts of ResolveKeys, for tests.
[[nodiscard]] Result<std::vector<std::uint32_t>> ParseTokens(const std::string& text, const std::string& source);
[[nodiscard]] Result<ModelSpec> ParseModelSpec(const std::string& text, const std::string& source);
[[nodiscard]] Result<Shard> ParseShard(const std::string& text);

}  // namespace kvm::ctl
