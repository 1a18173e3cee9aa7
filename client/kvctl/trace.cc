#include "client/kvctl/trace.h"

#include <boost/json/parse.hpp>
#include <boost/json/value.hpp>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <string_view>

namespace kvm::ctl {
namespace {

// A line of kMaxRequestBlocks ids has well under 1 MiB.
constexpr std::size_t kMaxLineBytes = std::size_t{4} << 20;
constexpr std::uint64_t kMaxTimestampMs = 100ULL * 365 * 86'400 * 1000;

Error Wrong(std::string what) { return MakeError(Errc::kInvalidArgument, std::move(what)); }

// A whole, non-negative number up to `limit`; 12.0 counts as whole, since some tools write timestamps so.
Result<std::uint64_t> Number(const boost::json::value& value, const std::string& what, std::uint64_t limit) {
  std::uint64_t number = 0;
  if (const std::uint64_t* unsigned_number = value.if_uint64()) {
    number = *unsigned_number;
  } else if (const std::int64_t* signed_number = value.if_int64()) {
    if (*signed_number < 0) return Wrong(what + " is negative: " + std::to_string(*signed_number));
    number = static_cast<std::uint64_t>(*signed_number);
  } else if (const double* real = value.if_double()) {
    if (*real < 0) return Wrong(what + " is negative");
    if (!(*real <= 9007199254740992.0) || *real != static_cast<double>(static_cast<std::uint64_t>(*real))) {
      return Wrong(what + " is not a whole number");
    }
    number = static_cast<std::uint64_t>(*real);
  } else {
    return Wrong(what + " is not a number");
  }
  if (number > limit) return Wrong(what + " is " + std::to_string(number) + ", the limit is " + std::to_string(limit));
  return number;
}

Result<std::uint64_t> Member(const boost::json::object& object, std::string_view name, std::uint64_t limit) {
  const boost::json::value* value = object.if_contains({name.data(), name.size()});
  if (value == nullptr) return Wrong("\"" + std::string(name) + "\" is missing");
  return Number(*value, "\"" + std::string(name) + "\"", limit);
}

Status CheckLengths(const Request& request, std::uint32_t block_tokens) {
  // Some tools name the partly filled last block, some leave it out.
  const std::uint64_t full = request.input_tokens / block_tokens, blocks = full + (request.input_tokens % block_tokens != 0);
  if (request.hash_ids.size() == blocks || request.hash_ids.size() == full) return {};
  return Wrong("\"hash_ids\" has " + std::to_string(request.hash_ids.size()) + " blocks, an input_length of " +
               std::to_string(request.input_tokens) + " needs " + std::to_string(blocks) + " of " + std::to_string(block_tokens) +
               " tokens");
}

Result<Request> ParseLine(const std::string& line, std::uint32_t block_tokens) {
  boost::json::error_code error;
  const boost::json::value value = boost::json::parse(line, error);
  if (error) return Wrong("not valid JSON: " + error.message());
  const boost::json::object* object = value.if_object();
  if (object == nullptr) return Wrong("not a JSON object");
  Request request;
  for (const auto& [name, limit, into] : {std::tuple{"timestamp", kMaxTimestampMs, &request.timestamp_ms},
                                          std::tuple{"input_length", kMaxRequestTokens, &request.input_tokens},
                                          std::tuple{"output_length", kMaxRequestTokens, &request.output_tokens}}) {
    const Result<std::uint64_t> number = Member(*object, name, limit);
    if (!number) return number.error();
    *into = *number;
  }
  if (request.input_tokens == 0) return Wrong("\"input_length\" is 0");
  const boost::json::value* ids = object->if_contains("hash_ids");
  if (ids == nullptr) return Wrong("\"hash_ids\" is missing");
  const boost::json::array* array = ids->if_array();
  if (array == nullptr) return Wrong("\"hash_ids\" is not an array");
  if (array->size() > kMaxRequestBlocks) {
    return Wrong("\"hash_ids\" has " + std::to_string(array->size()) + " blocks, the limit is " + std::to_string(kMaxRequestBlocks));
  }
  request.hash_ids.reserve(array->size());
  for (std::size_t i = 0; i < array->size(); ++i) {
    const Result<std::uint64_t> id = Number((*array)[i], "hash_ids[" + std::to_string(i) + "]", ~std::uint64_t{0});
    if (!id) return id.error();
    request.hash_ids.push_back(*id);
  }
  if (Status lengths = CheckLengths(request, block_tokens); !lengths) return lengths.error();
  return request;
}

}  // namespace

Result<std::vector<Request>> ParseTrace(std::istream& in, const std::string& name, const TraceOptions& options) {
  std::vector<Request> requests;
  std::string line;
  for (std::size_t number = 1; std::getline(in, line); ++number) {
    const auto at_line = [&](const std::string& what) { return Wrong(name + ":" + std::to_string(number) + ": " + what); };
    if (line.size() > kMaxLineBytes) return at_line("line of " + std::to_string(line.size()) + " bytes");
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    Result<Request> request = ParseLine(line, options.block_tokens);
    if (!request) return at_line(request.error().message);
    requests.push_back(std::move(*request));
    if (options.limit_requests != 0 && requests.size() == options.limit_requests) break;
  }
  if (in.bad()) return MakeError(Errc::kSystem, name + ": read error");
  if (requests.empty()) return Wrong(name + ": no requests in this file");
  return requests;
}

Result<std::vector<Request>> ReadTrace(const std::string& path, const TraceOptions& options) {
  std::ifstream file(path);
  if (!file) {
    Error error = SystemError("open " + path);
    error.code = Errc::kNotFound;
    return error;
  }
  return ParseTrace(file, path, options);
}

}  // namespace kvm::ctl
