// A process of kvctl as a worker of kvmd: its connection, its model, and pools of blocks.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "kvclient/kvclient.h"

namespace kvm::ctl {

struct WorkerClientOptions {
  std::string socket, name;
  ModelSpec model{};
  // GPUs that blocks are imported to; those of host memory (zeros) are left out
  std::vector<DeviceUuid> devices{};
  std::chrono::milliseconds connect_timeout{30'000};
  std::uint32_t verify_one_in = 0;
};

struct PoolOptions {
  std::string name;
  Geometry geometry{};
  DeviceUuid device{};         // zeros: host memory
  std::uint16_t kv_group = 0;  // blocks of one group have one size
  bool offload = true;         // kvmd's host cache gets the blocks if it asks for them
};

struct WorkerClient {
  std::shared_ptr<Client> client;
  Model model;
};

// A GPU's context and its peers' memory take their time.
inline constexpr std::chrono::milliseconds kSetUpTimeout{30'000};

// Connects and declares the model. The errors of Client::Connect and Client::DeclareModel.
[[nodiscard]] Result<WorkerClient> ConnectWorker(const WorkerClientOptions& options);

// A region that ends with this process: no other one takes the place of a worker of kvctl. The
// errors of Client::AllocateRegion.
[[nodiscard]] Result<std::shared_ptr<Region>> AllocatePool(Client& client, const Model& model, const PoolOptions& options);

}  // namespace kvm::ctl
