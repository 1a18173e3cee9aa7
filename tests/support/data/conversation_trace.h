// The public conversation trace, if this machine has it.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>

namespace kvm::test {

// Its path: KVM_TRACE, else beside the source tree. Empty if it does not exist.
inline std::string ConversationTrace() {
  if (const char* path = std::getenv("KVM_TRACE")) return path;
  const auto path = std::filesystem::path(KVM_TEST_DATA_DIR) / "../../shared/traces/conversation_trace.jsonl";
  return std::filesystem::exists(path) ? path.string() : "";
}

}  // namespace kvm::test
