// Reads the bytes of a trace file, plain or compressed by gzip, from a path or from standard input.
#pragma once

#include <string>

#include "client/kvctl/workload/line_reader.h"

namespace kvm::ctl {

inline constexpr const char* kStandardInput = "-";

// `path`: a file, or kStandardInput. A file that begins like gzip is decompressed, whatever its
// name is.
// kNotFound: it can't be opened. kInvalidArgument: a directory. Errors of the returned source:
// kInvalidArgument for damaged or truncated gzip data, else kSystem.
[[nodiscard]] Result<LineReader::Source> OpenTraceFile(const std::string& path);

}  // namespace kvm::ctl
