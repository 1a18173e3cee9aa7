// The bytes of a trace file: plain or compressed by gzip, from a path or from standard input.
#pragma once

#include <string>

#include "client/kvctl/workload/line_reader.h"

namespace kvm::ctl {

inline constexpr const char* kStandardInput = "-";

// `path`: kStandardInput reads from there. What begins as gzip does is decompressed, whatever its name.
// kNotFound: it can't be opened. kInvalidArgument: a directory. The source's own errors: kInvalidArgument for damaged or cut
// gzip data, else kSystem.
[[nodiscard]] Result<LineReader::Source> OpenTraceFile(const std::string& path);

}  // namespace kvm::ctl
