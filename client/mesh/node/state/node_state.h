// NodeState: what the services of one mesh process share. Of the io_context's thread.
#pragma once

#include <boost/asio/io_context.hpp>
#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <set>

#include "client/mesh/directory/node_summary.h"
#include "client/mesh/events/node_events.h"
#include "client/mesh/memory/mesh_memory.h"
#include "client/mesh/node/state/config.h"
#include "client/mesh/node/state/node_disk.h"
#include "client/mesh/threads/work_threads.h"
#include "kvclient/client.h"

namespace kvm::mesh {

struct NodeCounters {
  std::uint64_t served_blocks = 0, served_bytes = 0, served_from_disk = 0;
  std::uint64_t joins = 0, joined_blocks = 0;
};

// An io_context whose coroutines can be destroyed while the objects that they refer to exist.
class MeshIo : public boost::asio::io_context {
 public:
  MeshIo() : io_context(1) {}
  // Nothing runs afterwards.
  using execution_context::shutdown;
};

struct NodeState {
  NodeState(const Config& settings, std::shared_ptr<Client> connected)
      : config(settings),
        client(std::move(connected)),
        landing(client, control_threads, PoolUse::kLanding, config.pool_bytes),
        staging(client, control_threads, PoolUse::kStaging, config.staging_bytes) {}

  const Config config;
  MeshIo io;
  std::shared_ptr<Client> client;
  WorkFailures work_failures;                         // of all threads
  WorkThreads control_threads{io, work_failures, 1};  // calls that wait for kvmd, and the scan
  WorkThreads copy_threads{io, work_failures, 2};     // imports into staging, checksums
  MeshMemory landing;
  MeshMemory staging;
  std::map<Fingerprint, Model> models;  // that workers of this node have declared
  std::set<BlockShape> shapes;          // of blocks that this node has
  NodeSummary summary;                  // of keys in host memory
  NodeSummary disk_summary;             // of keys on the disk
  std::unique_ptr<NodeDisk> disk;       // null: there is no disk cache
  std::unique_ptr<NodeEvents> events;   // null: nothing is published
  NodeCounters counters;
  // Of this process
  const std::uint64_t process = std::uint64_t{std::random_device{}()} << 32 | std::random_device{}();
};

}  // namespace kvm::mesh
