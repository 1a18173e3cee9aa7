#include "client/mesh/threads/work_failures.h"

#include "client/mesh/log/event_log.h"

namespace kvm::mesh {
namespace {

std::string TextOf(const std::exception_ptr& failed) {
  try {
    std::rethrow_exception(failed);
  } catch (const std::exception& exception) {
    return exception.what();
  } catch (...) {
    return "an exception of unknown kind";
  }
}

}  // namespace

Error WorkFailures::Note(std::string_view what, const std::exception_ptr& failed) {
  ++count_;
  last_ = std::string(what) + ": " + TextOf(failed);
  if (const auto left_out = lines_.Take()) LogEvent(LogLevel::kError, "work_failed", {{"reason", last_}, {"left_out", *left_out}});
  return MakeError(Errc::kResourceExhausted, last_);
}

}  // namespace kvm::mesh
