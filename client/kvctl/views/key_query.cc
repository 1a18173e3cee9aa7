#include "client/kvctl/views/key_query.h"

#include <boost/json/parse.hpp>
#include <boost/json/value.hpp>

#include <charconv>
#include <fstream>
#include <iostream>
#include <iterator>
#include <sstream>

namespace kvm::ctl {
namespace {

constexpr std::size_t kMaxInputBytes = std::size_t{64} << 20;

Error Wrong(std::string what) { return MakeError(Errc::kInvalidArgument, std::move(what)); }

Result<std::string> ReadAll(const std::string& path) {
  std::string text;
  const auto read = [&](std::istream& in) -> Status {
    std::string chunk(std::size_t{64} << 10, '\0');
    while (in.read(chunk.data(), static_cast<std::streamsize>(chunk.size())) || in.gcount() > 0) {
      text.append(chunk, 0, static_cast<std::size_t>(in.gcount()));
      if (text.size() > kMaxInputBytes) return Wrong(path + ": larger than " + std::to_string(kMaxInputBytes) + " bytes");
    }
    return {};
  };
  if (path == "-") {
    if (Status done = read(std::cin); !done) return done.error();
    return text;
  }
  std::ifstream file(path);
  if (!file) {
    Error error = SystemError("open " + path);
    error.code = Errc::kNotFound;
    return error;
  }
  if (Status done = read(file); !done) return done.error();
  return text;
}

Result<std::vector<BlockKey>> ParseKeys(const std::string& text) {
  std::vector<BlockKey> keys;
  std::istringstream parts(text);
  for (std::string part; std::getline(parts, part, ',');) {
    Result<BlockKey> key = BlockKey::FromHex(part);
    if (!key) return Wrong("--keys: " + key.error().message);
    keys.push_back(*key);
  }
  if (keys.empty()) return Wrong("--keys: no key given");
  return keys;
}

Result<ModelSpec> SpecFor(const KeyQueryOptions& options, const std::vector<ModelEntry>& declared) {
  const int given = !options.model_spec_file.empty() + !options.fingerprint.empty() + !options.model.empty();
  if (given != 1) return Wrong("tokens need exactly one of --model-spec, --fingerprint and --model");
  if (!options.model_spec_file.empty()) {
    Result<std::string> text = ReadAll(options.model_spec_file);
    if (!text) return text.error();
    return ParseModelSpec(*text, options.model_spec_file);
  }
  const std::string& name = options.model.empty() ? options.fingerprint : options.model;
  Result<std::vector<ModelEntry>> models = SelectModels(declared, name);
  if (!models) return models.error();
  if (models->size() > 1) {
    std::string all;
    for (const ModelEntry& model : *models) all += " " + ShortFingerprint(model.fingerprint);
    return Wrong("--model " + name + ": " + std::to_string(models->size()) +
                 " declared models have this name; choose by --fingerprint:" + all);
  }
  return models->front().spec;
}

}  // namespace

Result<std::vector<std::uint32_t>> ParseTokens(const std::string& text, const std::string& source) {
  std::vector<std::uint32_t> tokens;
  const char* at = text.data();
  const char* const end = at + text.size();
  // Brackets, commas and white space are separators, so that both a JSON array and 1,2,3 can be
  // read.
  const auto separator = [](char c) { return c == ',' || c == '[' || c == ']' || c == ' ' || c == '\n' || c == '\t' || c == '\r'; };
  while (at != end) {
    if (separator(*at)) {
      ++at;
      continue;
    }
    std::uint32_t token = 0;
    const auto [next, error] = std::from_chars(at, end, token);
    if (error != std::errc{} || (next != end && !separator(*next))) {
      return Wrong(source + ": not a token id: " + std::string(at, std::min<std::size_t>(static_cast<std::size_t>(end - at), 20)));
    }
    tokens.push_back(token);
    at = next;
  }
  if (tokens.empty()) return Wrong(source + ": no token ids");
  return tokens;
}

Result<ModelSpec> ParseModelSpec(const std::string& text, const std::string& source) {
  ModelSpec spec;
  const auto set = [&](const std::string& where, std::string_view name, std::string_view value) -> Status {
    if (Status done = SetField(spec, name, value); !done) return Wrong(where + ": " + done.error().message);
    return {};
  };
  if (text.find_first_not_of(" \t\r\n") != std::string::npos && text[text.find_first_not_of(" \t\r\n")] == '{') {
    boost::json::error_code error;
    const boost::json::value value = boost::json::parse(text, error);
    if (error) return Wrong(source + ": not valid JSON: " + error.message());
    for (const auto& [name, member] : value.get_object()) {
      std::string member_text;
      if (const auto* string = member.if_string()) {
        member_text.assign(string->data(), string->size());
      } else if (member.is_number() && !member.is_double()) {
        member_text = member.is_uint64() ? std::to_string(member.get_uint64()) : std::to_string(member.get_int64());
      } else {
        return Wrong(source + ": " + std::string(name) + " is neither text nor a whole number");
      }
      if (Status done = set(source, name, member_text); !done) return done.error();
    }
  } else {
    std::istringstream lines(text);
    std::string line;
    for (std::size_t number = 1; std::getline(lines, line); ++number) {
      const std::string where = source + ":" + std::to_string(number);
      if (!line.empty() && line.back() == '\r') line.pop_back();
      if (line.find_first_not_of(" \t") == std::string::npos || line.front() == '#') continue;
      const std::size_t equals = line.find('=');
      if (equals == std::string::npos) return Wrong(where + ": not name=value");
      if (Status done = set(where, std::string_view(line).substr(0, equals), std::string_view(line).substr(equals + 1)); !done) {
        return done.error();
      }
    }
  }
  if (Status valid = spec.Validate(); !valid) return Wrong(source + ": " + valid.error().message);
  return spec;
}

Result<Shard> ParseShard(const std::string& text) {
  Shard shard;
  std::uint16_t* const fields[] = {&shard.tp_rank, &shard.tp_size, &shard.pp_rank, &shard.pp_size, &shard.kv_group};
  std::istringstream parts(text);
  std::size_t count = 0;
  for (std::string part; std::getline(parts, part, '/'); ++count) {
    if (count == std::size(fields)) return Wrong("--shard: more than five numbers: " + text);
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), *fields[count]);
    if (part.empty() || error != std::errc{} || end != part.data() + part.size()) return Wrong("--shard: not a number: " + part);
  }
  if (count != 2 && count != 4 && count != 5) return Wrong("--shard: expected tp_rank/tp_size[/pp_rank/pp_size[/kv_group]], got " + text);
  if (Status valid = shard.Validate(); !valid) return Wrong("--shard: " + valid.error().message);
  return shard;
}

std::vector<BlockKey> KeyQuery::KeysFor(const ModelSpec& other_spec, const Shard& other_shard,
                                        const std::vector<ExtraKey>& other_extras) const {
  std::vector<BlockKey> out;
  KeyChain(other_spec.ComputeFingerprint(), other_shard, other_extras).Extend(tokens, other_spec.block_tokens, out);
  return out;
}

Result<KeyQuery> ResolveKeys(const KeyQueryOptions& options, const std::vector<ModelEntry>& declared) {
  const int given = !options.keys.empty() + !options.tokens.empty() + !options.tokens_file.empty();
  if (given != 1) return Wrong("give exactly one of --keys, --tokens and --tokens-file");
  KeyQuery query;
  if (!options.keys.empty()) {
    Result<std::vector<BlockKey>> keys = ParseKeys(options.keys);
    if (!keys) return keys.error();
    query.keys = std::move(*keys);
    return query;
  }
  std::string text = options.tokens, source = "--tokens";
  if (text.empty()) {
    source = options.tokens_file;
    Result<std::string> contents = ReadAll(source);
    if (!contents) return contents.error();
    text = std::move(*contents);
  }
  Result<std::vector<std::uint32_t>> tokens = ParseTokens(text, source);
  if (!tokens) return tokens.error();
  query.tokens = std::move(*tokens);
  Result<ModelSpec> spec = SpecFor(options, declared);
  if (!spec) return spec.error();
  query.spec = std::move(*spec);
  query.shard.tp_size = static_cast<std::uint16_t>(std::min<std::uint32_t>(query.spec->tp_size, 0xFFFF));
  query.shard.pp_size = static_cast<std::uint16_t>(std::min<std::uint32_t>(query.spec->pp_size, 0xFFFF));
  if (!options.shard.empty()) {
    Result<Shard> shard = ParseShard(options.shard);
    if (!shard) return shard.error();
    query.shard = *shard;
  }
  if (!options.lora.empty()) query.extras.push_back({ExtraKey::Kind::kLora, options.lora});
  if (!options.salt.empty()) query.extras.push_back({ExtraKey::Kind::kCacheSalt, options.salt});
  query.keys = query.KeysFor(*query.spec, query.shard, query.extras);
  if (query.keys.empty()) {
    return Wrong(source + ": " + std::to_string(query.tokens.size()) + " tokens are less than one block of " +
                 std::to_string(query.spec->block_tokens));
  }
  return query;
}

}  // namespace kvm::ctl
