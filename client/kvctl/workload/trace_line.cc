#include "client/kvctl/workload/trace_line.h"

#include <boost/json/basic_parser_impl.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <string>
#include <utility>

#include "client/kvctl/workload/request.h"
#include "client/kvctl/workload/trace_format.h"

namespace kvm::ctl {
namespace {

using boost::json::error_code;
using boost::json::string_view;

// Above this, a double can't represent every whole number.
constexpr double kMaxWholeDouble = 9007199254740992.0;

// The handler that boost::json's parser calls. It stores the members that kvctl uses and skips all
// others, so that a long prompt in the same object costs no memory.
class LineHandler {
 public:
  static constexpr std::size_t max_object_size = std::numeric_limits<std::size_t>::max();
  static constexpr std::size_t max_array_size = std::numeric_limits<std::size_t>::max();
  static constexpr std::size_t max_key_size = std::numeric_limits<std::size_t>::max();
  static constexpr std::size_t max_string_size = std::numeric_limits<std::size_t>::max();

  explicit LineHandler(bool with_timestamp) : with_timestamp_(with_timestamp) {}

  bool on_document_begin(error_code&) { return true; }
  bool on_document_end(error_code&) { return true; }
  bool on_comment_part(string_view, error_code&) { return true; }
  bool on_comment(string_view, error_code&) { return true; }

  bool on_object_begin(error_code& error) { return (depth_ == 0 || Other(error)) && Enter(); }
  bool on_object_end(std::size_t, error_code&) { return Leave(); }
  bool on_array_begin(error_code& error) {
    if (depth_ == 1 && member_ == Member::kIds) {
      has_ids_ = true;
      ids_ = 0;
      line_.hash_ids.clear();
      return Enter();
    }
    return Other(error) && Enter();
  }
  bool on_array_end(std::size_t, error_code& error) {
    if (depth_ == 2 && member_ == Member::kIds && ids_ > kMaxRequestBlocks) {
      return Refuse(error, "\"hash_ids\" has " + std::to_string(ids_) + " blocks, the limit is " + std::to_string(kMaxRequestBlocks));
    }
    return Leave();
  }

  bool on_key_part(string_view part, std::size_t, error_code&) {
    if (depth_ == 1) AddToKey(part);
    return true;
  }
  bool on_key(string_view part, std::size_t, error_code&) {
    if (depth_ != 1) return true;
    AddToKey(part);
    member_ = MemberOf(std::exchange(key_, {}));
    return true;
  }

  bool on_string_part(string_view, std::size_t, error_code&) { return true; }
  bool on_string(string_view, std::size_t, error_code& error) { return Other(error); }
  bool on_bool(bool, error_code& error) { return Other(error); }
  // null counts as a missing member.
  bool on_null(error_code& error) { return depth_ == 1 && member_ != Member::kInput ? true : Other(error); }

  bool on_number_part(string_view, error_code&) { return true; }
  bool on_uint64(std::uint64_t value, string_view, error_code& error) { return Whole(value, error); }
  bool on_int64(std::int64_t value, string_view, error_code& error) {
    if (value >= 0) return Whole(static_cast<std::uint64_t>(value), error);
    return Takes() ? Refuse(error, Name() + " is negative: " + std::to_string(value)) : Other(error);
  }
  bool on_double(double value, string_view, error_code& error) {
    if (!Takes()) return Other(error);
    if (value < 0) return Refuse(error, Name() + " is negative");
    if (member_ == Member::kTimestamp) {
      if (!std::isfinite(value)) return Refuse(error, Name() + " is too large");
      line_.timestamp = value;
      return true;
    }
    // 12.0 counts as a whole number, since some tools write all numbers with a fraction.
    if (!(value <= kMaxWholeDouble) || value != std::floor(value)) return Refuse(error, Name() + " is not a whole number");
    return Whole(static_cast<std::uint64_t>(value), error);
  }

  const std::string& refusal() const noexcept { return refusal_; }

  Result<TraceLine> Take() {
    const auto missing = [](const char* name) { return MakeError(Errc::kInvalidArgument, "\"" + std::string(name) + "\" is missing"); };
    if (!has_ids_)
      return MakeError(Errc::kInvalidArgument, std::string("\"hash_ids\" is missing, the ids of the request's blocks; ") + kTraceFormats);
    if (!has_input_) return missing("input_length");
    if (line_.input_tokens == 0) return MakeError(Errc::kInvalidArgument, "\"input_length\" is 0");
    return std::move(line_);
  }

 private:
  enum class Member { kOther, kTimestamp, kInput, kOutput, kIds };

  static constexpr std::size_t kMaxKnownKey = 16;

  void AddToKey(string_view part) {
    if (key_.size() <= kMaxKnownKey) key_.append(part.data(), std::min(part.size(), kMaxKnownKey));
  }
  Member MemberOf(std::string_view key) const {
    if (key == "timestamp") return with_timestamp_ ? Member::kTimestamp : Member::kOther;
    if (key == "input_length") return Member::kInput;
    if (key == "output_length") return Member::kOutput;
    if (key == "hash_ids") return Member::kIds;
    return Member::kOther;
  }

  bool Enter() {
    ++depth_;
    return true;
  }
  bool Leave() {
    --depth_;
    if (depth_ == 1) member_ = Member::kOther;
    return true;
  }

  // Whether a number at this place is one that kvctl uses.
  bool Takes() const noexcept {
    if (member_ == Member::kIds) return depth_ == 2;
    return depth_ == 1 && member_ != Member::kOther;
  }
  // The name of the number that is being read.
  std::string Name() const {
    switch (member_) {
      case Member::kTimestamp: return "\"timestamp\"";
      case Member::kInput: return "\"input_length\"";
      case Member::kOutput: return "\"output_length\"";
      case Member::kIds: return depth_ > 1 ? "hash_ids[" + std::to_string(ids_) + "]" : "\"hash_ids\"";
      case Member::kOther: break;
    }
    return "a number";
  }

  bool Refuse(error_code& error, std::string what) {
    refusal_ = std::move(what);
    error = boost::json::error::extra_data;  // any error code stops the parser
    return false;
  }

  // Handles a value that is no number, or a number that kvctl does not use.
  bool Other(error_code& error) {
    if (depth_ == 0) return Refuse(error, "not a JSON object");
    if (depth_ == 1 && member_ == Member::kIds) return Refuse(error, "\"hash_ids\" is not an array");
    if (Takes()) return Refuse(error, Name() + " is not a number");
    return true;
  }

  bool Whole(std::uint64_t value, error_code& error) {
    if (!Takes()) return Other(error);
    switch (member_) {
      case Member::kTimestamp: line_.timestamp = static_cast<double>(value); return true;
      case Member::kInput: has_input_ = true; return Tokens(value, line_.input_tokens, error);
      case Member::kOutput: return Tokens(value, line_.output_tokens, error);
      case Member::kIds:
        // Further ids are counted, so that the message can say how many there are.
        if (++ids_ <= kMaxRequestBlocks) line_.hash_ids.push_back(value);
        return true;
      case Member::kOther: break;
    }
    return true;
  }
  bool Tokens(std::uint64_t value, std::uint64_t& into, error_code& error) {
    if (value > kMaxRequestTokens) {
      return Refuse(error, Name() + " is " + std::to_string(value) + ", the limit is " + std::to_string(kMaxRequestTokens));
    }
    into = value;
    return true;
  }

  const bool with_timestamp_;
  TraceLine line_;
  std::string key_, refusal_;
  Member member_ = Member::kOther;
  int depth_ = 0;
  bool has_input_ = false, has_ids_ = false;
  std::size_t ids_ = 0;
};

}  // namespace

Result<TraceLine> ParseTraceLine(std::string_view line, bool with_timestamp) {
  boost::json::basic_parser<LineHandler> parser({}, with_timestamp);
  error_code error;
  const std::size_t parsed = parser.write_some(false, line.data(), line.size(), error);
  if (!parser.handler().refusal().empty()) return MakeError(Errc::kInvalidArgument, parser.handler().refusal());
  if (!error && parsed < line.size()) error = boost::json::error::extra_data;
  if (error) return MakeError(Errc::kInvalidArgument, "not valid JSON: " + error.message() + "; a line is one object");
  return parser.handler().Take();
}

}  // namespace kvm::ctl
