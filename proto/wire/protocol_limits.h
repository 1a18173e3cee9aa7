// Limits of the protocol, the same for every implementation of it. Sizes in bytes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvm {

inline constexpr std::uint32_t kProtocolVersion = 3;

inline constexpr std::size_t kMaxFrameBytes = std::size_t{1} << 20;  // payload of one frame
// Descriptors with one frame; SCM_MAX_FD is 253
inline constexpr std::size_t kMaxFrameFds = 129;
// Of a RegionDescriptor: the other limits leave 341 KiB
inline constexpr std::size_t kMaxDescriptorBytes = 384 * 1024;
inline constexpr std::size_t kMaxPublishBatch = 8192;  // records of one Publish
// Records of one PrepareStore, outcomes of one CompleteStore
inline constexpr std::size_t kMaxStoreBatch = 1024;
inline constexpr std::size_t kMaxHostCacheRuns = 256;  // of one HostCacheUse
// Of Durations: 2^0 to 2^22 microseconds (4.2 s), and longer
inline constexpr std::size_t kDurationBuckets = 24;
inline constexpr std::size_t kMaxLeaseBatch = 8192;  // sources of one AcquireLease
inline constexpr std::size_t kMaxMarkBatch = 1024;   // keys of one MarkComputing
inline constexpr std::size_t kMaxEvictKeys = 8192;   // of one Evict
inline constexpr std::size_t kMaxRecentMisses = 8;   // of one StatsReport
inline constexpr std::size_t kMaxTrafficPairs = 64;  // of one StatsReport
// Of a domain's sums; kvmd leaves out what goes beyond
inline constexpr std::size_t kMaxDomainTrafficPairs = 256;
inline constexpr std::size_t kMaxNameBytes = 63;
// Of one region with descriptors; the generation table and the records need one more each
inline constexpr std::size_t kMaxSegments = kMaxFrameFds - 2;
inline constexpr std::size_t kMaxSegmentsByHandle = 1024;  // of one cuda_ipc region

inline constexpr const char* kDefaultSocketPath = "/run/kvmd/kvmd.sock";

}  // namespace kvm
