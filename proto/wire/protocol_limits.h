// Limits of the protocol, the same for every implementation of it. Sizes in bytes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvm {

inline constexpr std::uint32_t kProtocolVersion = 3;

inline constexpr std::size_t kMaxFrameBytes = std::size_t{1} << 20;  // payload of one frame
inline constexpr std::size_t kMaxFrameFds = 129;                     // descriptors with one frame; SCM_MAX_FD is 253
inline constexpr std::size_t kMaxDescriptorBytes = 384 * 1024;       // of a RegionDescriptor: the other limits leave 341 KiB
inline constexpr std::size_t kMaxPublishBatch = 8192;                // records of one Publish
inline constexpr std::size_t kMaxStoreBatch = 1024;                  // records of one PrepareStore, outcomes of one CompleteStore
inline constexpr std::size_t kMaxHostCacheRuns = 256;                // of one HostCacheUse
inline constexpr std::size_t kMaxLeaseBatch = 8192;                  // blocks of one Hold
inline constexpr std::size_t kMaxNameBytes = 63;
inline constexpr std::size_t kMaxSegments = kMaxFrameFds - 2;  // of one region with descriptors: generations and records come on top
inline constexpr std::size_t kMaxSegmentsByHandle = 1024;      // of one cuda_ipc region

inline constexpr const char* kDefaultSocketPath = "/run/kvmd/kvmd.sock";

}  // namespace kvm
