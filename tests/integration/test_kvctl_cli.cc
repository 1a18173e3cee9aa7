// The command line of kvctl against a real kvmd: exit codes, JSON members, what is left behind.
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <functional>
#include <sstream>
#include <thread>
#include <unordered_set>

#include "client/kvctl/bench/import_run.h"
#include "client/kvctl/process/child_process.h"
#include "client/kvctl/process/roles.h"
#include "client/kvctl/workload/pool_bytes.h"
#include "client/kvctl/workload/workload.h"
#include "kvclient/kvclient.h"
#include "tests/catch.h"
#include "tests/support/kvmd/kvctl_children.h"
#include "tests/support/kvmd/kvctl_sandbox.h"
#include "tests/support/kvmd/kvmd_process.h"
#include "tests/support/process/child_main.h"

namespace {

using namespace kvm;
using namespace kvm::ctl;
using namespace kvm::test;
using namespace std::chrono_literals;
namespace fs = std::filesystem;

// What kvctl's code starts in another process, when it runs in this one.
const ChildMain bench_peer(kBenchPeerRole, [](const std::vector<std::string>& arguments) {
  return RunBenchPeer(Channel(UniqueFd(std::stoi(arguments.at(0)))));
});

ModelSpec Spec() {
  ModelSpec spec;
  spec.model_id = "org/model";
  spec.kv_dtype = "bfloat16";
  spec.layout = "NHD";
  spec.num_layers = spec.num_kv_heads = 1;
  spec.head_size = 8;
  spec.block_tokens = 4;
  return spec;
}

const std::vector<std::uint32_t> kTokens{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};

// A kvmd with one worker (this process) that has published the first three of kTokens' four blocks.
struct Node {
  KvmdProcess kvmd{{"--max-entries", "4096"}};
  std::shared_ptr<Client> client;
  std::shared_ptr<Region> region;
  std::vector<BlockKey> keys;

  Node() {
    ClientOptions client_options;
    client_options.socket_path = kvmd.socket();
    client_options.name = "test-worker";
    Result<std::shared_ptr<Client>> connected = Client::Connect(client_options);
    KVM_REQUIRE_OK(connected);
    client = *connected;
    Result<Model> model = client->DeclareModel(Spec(), After(5s));
    KVM_REQUIRE_OK(model);
    RegionOptions region_options;
    region_options.name = "test-pool";
    region_options.geometry = Geometry::Contiguous(16, 64);
    Result<std::shared_ptr<Region>> allocated = client->AllocateRegion(*model, region_options, After(5s));
    KVM_REQUIRE_OK(allocated);
    region = *allocated;
    KeyChain chain(model->fingerprint, Shard{});
    std::vector<PublishRequest> requests;
    for (std::uint32_t i = 0; i < 3; ++i) {
      const BlockKey parent = chain.parent();
      keys.push_back(chain.Next(std::span(kTokens).subspan(4 * i, 4)));
      requests.push_back({keys.back(), parent, i, region->BeginWrite(10 + i)});
    }
    region->Publish(requests);
    KVM_REQUIRE_OK(region->Flush(After(5s)));
  }

  std::string Arguments(const std::string& command) const { return "--socket " + kvmd.socket() + " --json " + command; }
};

std::string TokenList(std::size_t count) {
  std::string list;
  for (std::size_t i = 0; i < count; ++i) list += (i == 0 ? "" : ",") + std::to_string(kTokens[i]);
  return list;
}

std::string TraceText(const std::vector<Request>& requests) {
  std::ostringstream text;
  for (const Request& request : requests) {
    text << "{\"timestamp\": " << request.timestamp_us / 1000 << ", \"input_length\": " << request.input_tokens
         << ", \"output_length\": " << request.output_tokens << ", \"hash_ids\": [";
    for (std::size_t i = 0; i < request.hash_ids.size(); ++i) text << (i == 0 ? "" : ", ") << request.hash_ids[i];
    text << "]}\n";
  }
  return text.str();
}

// Leading blocks that were part of an earlier request.
std::uint64_t ExactReuse(const std::vector<Request>& requests) {
  std::unordered_set<std::uint64_t> seen;
  std::uint64_t hits = 0;
  for (const Request& request : requests) {
    for (const std::uint64_t id : request.hash_ids) {
      if (!seen.contains(id)) break;
      ++hits;
    }
    seen.insert(request.hash_ids.begin(), request.hash_ids.end());
  }
  return hits;
}

// Workers of a replay that is under way.
std::vector<pid_t> WorkersOf(pid_t pid) { return ChildrenOf(pid, "replay-worker"); }

// A replay that would take far longer than any test, once its workers serve.
ctl::ChildProcess StartLongReplay(const Sandbox& sandbox) {
  return StartKvctl(sandbox,
                    {"replay", "--private", "--workload", "chat", "--requests", "400000", "--workers", "2", "--pool-blocks", "500"});
}

}  // namespace

TEST_CASE("kvctl: without a kvmd every view exits 2 and says so in one line", "[integration]") {
  const Sandbox sandbox;
  for (const char* command :
       {"status", "clients", "regions", "models", "ls", "find --keys 00", "explain --keys 00", "replay --workload chat"}) {
    INFO(command);
    const Sandbox::Output output = sandbox.Run("--socket " + (sandbox.path() / "none").string() + " " + command);
    CHECK(output.code == 2);
    CHECK(output.out.empty());
    CHECK(output.err.rfind("kvctl: can't reach kvmd on ", 0) == 0);
    CHECK(std::count(output.err.begin(), output.err.end(), '\n') == 1);
  }
  CHECK(sandbox.Run("doctor --socket " + (sandbox.path() / "none").string()).code == 2);
}

TEST_CASE("kvctl: wrong options and files exit 1 and are named", "[integration]") {
  const Sandbox sandbox;
  const auto refused = [&](const std::string& arguments, const std::string& named) {
    INFO(arguments);
    const Sandbox::Output output = sandbox.Run(arguments);
    INFO(output.err);
    CHECK(output.code == 1);
    CHECK(output.err.rfind("kvctl: ", 0) == 0);
    CHECK(output.err.find(named) != std::string::npos);
  };
  refused("", "subcommand");
  refused("frobnicate", "frobnicate");
  refused("status --timeout-ms 0", "--timeout-ms");
  refused("replay --private", "--trace or --workload");
  refused("replay --private --workload batch", "--workload");
  refused("replay --private --workload chat --workers 0", "--workers");
  refused("replay --private --workload chat --block-bytes 12", "--block-bytes");
  refused("replay --private --workload chat --kvmd /nonexistent/kvmd", "/nonexistent/kvmd");
  const fs::path trace = sandbox.Write("broken.jsonl", R"({"timestamp": 0, "input_length": 5, "output_length": 1, "hash_ids": [1]})"
                                                       "\n{\"timestamp\": 0}\n");
  refused("replay --private --trace " + trace.string(), trace.string() + ":2: \"hash_ids\" is missing");
  refused("bench find --entries 10 --keys 512", "--entries");
  CHECK(sandbox.Run("--help").code == 0);
  CHECK(sandbox.Run("replay --help").code == 0);
  CHECK(sandbox.NothingLeft());
}

TEST_CASE("kvctl: where there is no GPU, asking for one exits 1 and says why, and auto takes the host", "[integration]") {
  const Sandbox sandbox;
  const std::string replay = "replay --private --json --workload chat --requests 20 --workers 2 --pool-blocks 300 --block-bytes 64";
  const std::string bench = "bench import --json --bytes 1048576 --block-bytes 4096 --rounds 3";
  for (const std::string& command : {replay, bench}) {
    INFO(command);
    // Also on a machine with GPUs.
    const Sandbox::Output refused = sandbox.Run(command + " --backend cuda", "CUDA_VISIBLE_DEVICES=");
    INFO(refused.err);
    CHECK(refused.code == 1);
    CHECK(refused.err.rfind("kvctl: --backend cuda: ", 0) == 0);
    CHECK(refused.out.empty());
    CHECK(sandbox.Run(command + " --backend host --devices 0").code == 1);
    CHECK(sandbox.Run(command + " --backend vulkan").code == 1);
    const Sandbox::Output automatic = sandbox.Run(command, "CUDA_VISIBLE_DEVICES=");
    INFO(automatic.err);
    REQUIRE(automatic.code == 0);
    CHECK(Text(automatic.Json(), "backend") == "host");
    CHECK(automatic.Json().at("devices").as_array().empty());
  }
  const Sandbox::Output table =
      sandbox.Run("replay --private --workload chat --requests 20 --pool-blocks 300 --block-bytes 64", "CUDA_VISIBLE_DEVICES=");
  INFO(table.out);
  CHECK(table.out.find("backend   host memory: ") != std::string::npos);
  CHECK(sandbox.NothingLeft());
}

TEST_CASE("kvctl topo: a machine without GPUs is an answer, with the reason", "[integration]") {
  const Sandbox sandbox;
  for (const char* command : {"topo", "topo --measure"}) {
    INFO(command);
    const Sandbox::Output text = sandbox.Run(command, "CUDA_VISIBLE_DEVICES=");
    CHECK(text.code == 0);
    CHECK(text.out.rfind("no GPUs: ", 0) == 0);
    const boost::json::value json = sandbox.Run(std::string(command) + " --json", "CUDA_VISIBLE_DEVICES=").Json();
    CHECK(json.at("devices").as_array().empty());
    CHECK(json.at("links").as_array().empty());
    CHECK_FALSE(Text(json, "reason").empty());
    CHECK(Text(json, "cuda_toolkit") == CudaToolkitVersion());
  }
}

TEST_CASE("kvctl: --version says whether CUDA is built in", "[integration]") {
  const Sandbox sandbox;
  const Sandbox::Output version = sandbox.Run("--version");
  CHECK(version.code == 0);
  const std::string toolkit = CudaToolkitVersion();
  CHECK(version.out == std::string(KVM_VERSION) + (toolkit.empty() ? " (without CUDA)\n" : " (CUDA " + toolkit + ")\n"));
}

TEST_CASE("Pool bytes: filled bytes compare equal, also through a buffer and in any layout", "[integration]") {
  const Node node;
  for (const bool planes : {false, true}) {
    RegionOptions options;
    options.name = planes ? "planes" : "plain";
    options.shard.kv_group = 1;  // other sizes of blocks than the node's own region
    // Two chunks of 64 bytes a block, each in a plane of its own.
    options.geometry = planes ? Geometry{32, {GeometryPart{0, 0, 64, 64, 2, 32 * 64}}} : Geometry::Contiguous(32, 128);
    const Result<std::shared_ptr<Region>> region = node.client->AllocateRegion(node.region->model(), options, After(5s));
    KVM_REQUIRE_OK(region);
    std::vector<BlockKey> keys;
    const std::vector<std::uint32_t> blocks{7, 3, 4, 31, 5, 0};
    for (std::size_t i = 0; i < blocks.size(); ++i) keys.push_back({i, 77});
    PoolBytes in_place(**region, PoolBytes::Access::kInPlace), copied(**region, PoolBytes::Access::kCopied);
    for (PoolBytes* writer : {&in_place, &copied}) {
      INFO(planes << (writer == &copied));
      std::memset((*region)->SegmentData(), 0, 32 * 128);
      CHECK(*in_place.CountWrong(keys, blocks) == blocks.size());
      KVM_REQUIRE_OK(writer->Fill(keys, blocks));
      CHECK(*in_place.CountWrong(keys, blocks) == 0);
      CHECK(*copied.CountWrong(keys, blocks) == 0);
      const auto untouched = std::span((*region)->BlockData(6), 64);
      CHECK(std::all_of(untouched.begin(), untouched.end(), [](std::byte byte) { return byte == std::byte{0}; }));
      // The last byte of the first chunk of one block, the first one of another.
      (*region)->BlockData(4)[63] ^= std::byte{1};
      (*region)->BlockData(31)[0] ^= std::byte{128};
      CHECK(*in_place.CountWrong(keys, blocks) == 2);
      CHECK(*copied.CountWrong(keys, blocks) == 2);
    }
  }
}

TEST_CASE("Import run: imports a peer process's scattered blocks, chunk by chunk, and sees a wrong byte", "[integration]") {
  const Sandbox sandbox;
  Result<std::unique_ptr<ImportRun>> run = ImportRun::Start(CommonOptions(), BenchOptions(), 4096, {});
  KVM_REQUIRE_OK(run);
  // Two groups of blocks: sizes and layouts of their own.
  Result<SourceBlocks> planes = (*run)->Hold(kHostMemory, 1 << 20, 64 << 10, 4 << 10);
  KVM_REQUIRE_OK(planes);
  Result<SourceBlocks> plain = (*run)->Hold(kHostMemory, 1 << 20, 8 << 10, 8 << 10);
  KVM_REQUIRE_OK(plain);
  KVM_REQUIRE_OK((*run)->Connect());
  for (SourceBlocks* source : {&*planes, &*plain}) {
    Result<ImportRun::Target> target = (*run)->Allocate(kHostMemory, *source);
    KVM_REQUIRE_OK(target);
    CHECK(target->blocks.size() == source->blocks);
    CHECK_FALSE(static_cast<bool>((*run)->Check(*source, *target)));
    Result<ImportRun::Timing> timing = (*run)->Import(*source, *target, 1 << 20, 0, 3);
    KVM_REQUIRE_OK(timing);
    CHECK(timing->import_s.count() == 3);
    CHECK(timing->whole_s.p50() > 0);
    KVM_REQUIRE_OK((*run)->Check(*source, *target));
    timing = (*run)->Import(*source, *target, 128 << 10, 0, 20, true);
    KVM_REQUIRE_OK(timing);
    CHECK(timing->find_s.count() == 20);
    KVM_REQUIRE_OK((*run)->Check(*source, *target));
    target->region->BlockData(5)[9] ^= std::byte{4};
    KVM_CHECK_ERROR((*run)->Check(*source, *target), Errc::kSystem, "1 of " + std::to_string(source->blocks) + " blocks do not hold");
  }
}

TEST_CASE("kvctl doctor: a client that can't map its peers' regions is named, with the reason", "[integration]") {
  const Sandbox sandbox;
  const Node node;
  ClientOptions options;
  options.socket_path = node.kvmd.socket();
  options.name = "short-of-maps";
  options.max_mapped_regions = 0;
  const Result<std::shared_ptr<Client>> client = Client::Connect(options);
  KVM_REQUIRE_OK(client);
  KVM_REQUIRE_OK((*client)->DeclareModel(Spec(), After(5s)));
  REQUIRE((*client)->UnmappedRegions().size() == 1);
  std::string detail;
  const auto finding = [&] {
    const boost::json::value doctor = sandbox.Run(node.Arguments("doctor")).Json();
    for (const boost::json::value& check : doctor.at("checks").as_array()) {
      if (Text(check, "verdict") != "ok" && Text(check, "check") == "client") detail = Text(check, "detail");
    }
    return !detail.empty();
  };
  REQUIRE(Eventually(finding));
  INFO(detail);
  CHECK(detail.find("short-of-maps (pid " + std::to_string(::getpid()) + ") can't import from 1 region of its peers") == 0);
  CHECK(detail.find("test-pool: ") != std::string::npos);
  CHECK(detail.find("max_mapped_regions") != std::string::npos);
  const boost::json::value clients = sandbox.Run(node.Arguments("clients")).Json();
  for (const boost::json::value& shown : clients.at("clients").as_array()) {
    CHECK(Number(shown, "unmapped_regions") == (Text(shown, "name") == "short-of-maps" ? 1 : 0));
  }
}

TEST_CASE("kvctl models: what the workers of a model look up, find and import", "[integration]") {
  const Sandbox sandbox;
  const Node node;
  ClientOptions options;
  options.socket_path = node.kvmd.socket();
  const Result<std::shared_ptr<Client>> client = Client::Connect(options);
  KVM_REQUIRE_OK(client);
  KVM_REQUIRE_OK((*client)->DeclareModel(Spec(), After(5s)));
  std::vector<BlockKey> keys = node.keys;
  keys.push_back(BlockKey{1, 2});  // not published
  REQUIRE((*client)->Find(keys).size() == 3);
  boost::json::value counters;
  const auto reported = [&] {
    counters = sandbox.Run(node.Arguments("models")).Json().at("models").at(0).at("counters");
    return Number(counters, "finds") == 1;
  };
  REQUIRE(Eventually(reported));
  CHECK(Number(counters, "keys_looked_up") == 4);
  CHECK(Number(counters, "keys_matched") == 3);
  CHECK(Number(counters, "misses_absent") == 1);
  CHECK(Number(counters, "blocks_imported") == 0);
  const std::string table = sandbox.Run("--socket " + node.kvmd.socket() + " models").out;
  INFO(table);
  CHECK(table.find("75.0 %") != std::string::npos);
}

TEST_CASE("kvctl: status, clients, regions and models show what a worker has registered", "[integration]") {
  const Sandbox sandbox;
  const Node node;
  const Sandbox::Output status = sandbox.Run(node.Arguments("status"));
  CHECK(status.code == 0);
  CHECK(status.Json().at("healthy").as_bool());
  CHECK(Number(status.Json(), "pid") == node.kvmd.pid());
  CHECK(Number(status.Json().at("domains").at(0), "entries") == 3);
  REQUIRE(status.Json().at("memory").as_array().size() == 1);
  CHECK(Text(status.Json().at("memory").at(0), "device") == "host");
  CHECK(Text(status.Json().at("memory").at(0), "handle_kind") == "host_memfd");
  CHECK(Number(status.Json().at("memory").at(0), "regions") == 1);
  CHECK(Number(status.Json().at("memory").at(0), "size_bytes") == 16 * 64);

  bool shown = false;
  const boost::json::value clients = sandbox.Run(node.Arguments("clients")).Json();
  for (const boost::json::value& client : clients.at("clients").as_array()) {
    if (Text(client, "name") != "test-worker") continue;
    shown = true;
    CHECK(Number(client, "pid") == ::getpid());
    CHECK(Number(client, "entries") == 3);
  }
  CHECK(shown);

  const boost::json::value regions = sandbox.Run(node.Arguments("regions")).Json();
  REQUIRE(regions.at("regions").as_array().size() == 1);
  CHECK(Text(regions.at("regions").at(0), "name") == "test-pool");
  CHECK(Text(regions.at("regions").at(0), "state") == "live");
  CHECK(Text(regions.at("regions").at(0), "device") == "host");
  CHECK(Number(regions.at("regions").at(0), "blocks") == 16);
  CHECK(Number(regions.at("regions").at(0), "block_bytes") == 64);

  const boost::json::value models = sandbox.Run(node.Arguments("models")).Json();
  REQUIRE(models.at("models").as_array().size() == 1);
  CHECK(Text(models.at("models").at(0).at("spec"), "model_id") == "org/model");
  CHECK(Number(models.at("models").at(0).at("spec"), "block_tokens") == 4);
  for (const char* view : {"status", "clients", "regions", "models", "ls", "doctor"}) {
    INFO(view);
    const Sandbox::Output table = sandbox.Run("--socket " + node.kvmd.socket() + " " + view);
    CHECK(table.code == 0);
    CHECK(table.err.empty());
    CHECK_FALSE(table.out.empty());
  }
}

TEST_CASE("kvctl ls: filters by model, region and prefix", "[integration]") {
  const Sandbox sandbox;
  const Node node;
  const auto total = [&](const std::string& arguments) { return Number(sandbox.Run(node.Arguments("ls " + arguments)).Json(), "total"); };
  CHECK(total("") == 3);
  CHECK(total("--model org/model") == 3);
  CHECK(total("--region test-pool --limit 1") == 3);
  CHECK(total("--prefix " + node.keys[1].ToHex()) == 2);
  CHECK(total("--prefix " + BlockKey{1, 2}.ToHex()) == 0);
  const boost::json::value blocks = sandbox.Run(node.Arguments("ls --prefix " + node.keys[0].ToHex())).Json().at("blocks");
  REQUIRE(blocks.as_array().size() == 3);
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK(Text(blocks.at(i), "key") == node.keys[i].ToHex());
    CHECK(Number(blocks.at(i), "block") == static_cast<std::int64_t>(10 + i));
  }
  CHECK(sandbox.Run(node.Arguments("ls --model other")).code == 1);
  CHECK(sandbox.Run(node.Arguments("ls --region other")).code == 1);
  CHECK(sandbox.Run(node.Arguments("ls --prefix xyz")).code == 1);
}

TEST_CASE("kvctl find: says where each block is and where the prefix ends", "[integration]") {
  const Sandbox sandbox;
  const Node node;
  const boost::json::value found = sandbox.Run(node.Arguments("find --model org/model --tokens " + TokenList(16))).Json();
  CHECK(Number(found, "keys") == 4);
  CHECK(Number(found, "lcp") == 3);
  CHECK(Text(found, "end") == "absent");
  const boost::json::value& replica = found.at("blocks").at(1).at("replicas").at(0);
  CHECK(Text(replica, "region_name") == "test-pool");
  CHECK(Number(replica, "pid") == ::getpid());
  CHECK(Number(replica, "block") == 11);
  CHECK(found.at("blocks").at(3).at("replicas").as_array().empty());

  const std::string keys = node.keys[0].ToHex() + "," + node.keys[1].ToHex();
  CHECK(Number(sandbox.Run(node.Arguments("find --keys " + keys)).Json(), "lcp") == 2);
  CHECK(sandbox.Run(node.Arguments("find --tokens 1,2,3,4 --model other")).code == 1);
  CHECK(sandbox.Run(node.Arguments("find")).code == 1);

  node.region->Retract(11);
  const boost::json::value stale = sandbox.Run(node.Arguments("find --model org/model --tokens " + TokenList(12))).Json();
  CHECK(Number(stale, "lcp") == 1);
}

TEST_CASE("kvctl explain: names the reason of a miss", "[integration]") {
  const Sandbox sandbox;
  const Node node;
  const auto reasons = [&](const std::string& arguments) {
    const boost::json::value answer = sandbox.Run(node.Arguments("explain " + arguments)).Json();
    std::string kinds;
    for (const boost::json::value& reason : answer.at("reasons").as_array()) kinds += Text(reason, "kind") + " ";
    return kinds;
  };
  CHECK(sandbox.Run(node.Arguments("explain --model org/model --tokens " + TokenList(12))).Json().at("hit").as_bool());
  CHECK(reasons("--model org/model --tokens " + TokenList(12)).empty());
  CHECK(reasons("--model org/model --tokens " + TokenList(16)) == "absent ");
  CHECK(reasons("--model org/model --salt pepper --tokens " + TokenList(8)) == "absent extra_keys ");

  std::string other;
  for (const auto& [name, value] : Fields(Spec())) other += name + "=" + (name == "kv_dtype" ? "float16" : value) + "\n";
  const fs::path file = sandbox.Write("model", other);
  CHECK(reasons("--model-spec " + file.string() + " --tokens " + TokenList(8)) == "model_not_declared model_field absent other_model ");
  const Sandbox::Output text =
      sandbox.Run("--socket " + node.kvmd.socket() + " explain --model-spec " + file.string() + " --tokens " + TokenList(8));
  CHECK(text.out.find("kv_dtype is \"float16\" here and \"bfloat16\" there") != std::string::npos);
}

TEST_CASE("kvctl doctor: all is well with a fresh kvmd", "[integration]") {
  const Sandbox sandbox;
  const Node node;
  const Sandbox::Output doctor = sandbox.Run(node.Arguments("doctor"));
  INFO(doctor.out);
  CHECK(doctor.code == 0);
  CHECK(doctor.Json().at("healthy").as_bool());
}

TEST_CASE("kvctl: a kvmd that does not answer is unreachable, within the timeout", "[integration]") {
  const Sandbox sandbox;
  const Node node;
  REQUIRE(::kill(node.kvmd.pid(), SIGSTOP) == 0);
  const Sandbox::Output output = sandbox.Run(node.Arguments("--timeout-ms 200 status"));
  ::kill(node.kvmd.pid(), SIGCONT);
  CHECK(output.code == 2);
  CHECK(output.err.find("200 ms") != std::string::npos);
}

TEST_CASE("kvctl replay: in order and with pools that never evict, exactly the trace's reuse is hit", "[integration]") {
  const Sandbox sandbox;
  for (const Workload workload : {Workload::kChat, Workload::kRag, Workload::kAgents}) {
    INFO(WorkloadName(workload));
    WorkloadOptions options;
    options.workload = workload;
    options.requests = 150;
    const std::vector<Request> requests = GenerateWorkload(options);
    std::int64_t blocks = 0;
    for (const Request& request : requests) blocks += static_cast<std::int64_t>(request.hash_ids.size());
    const fs::path trace = sandbox.Write("trace.jsonl", TraceText(requests));
    const Sandbox::Output output =
        sandbox.Run("replay --json --private --in-order --workers 3 --pool-blocks 6000 --block-bytes 256 --trace " + trace.string());
    INFO(output.err);
    REQUIRE(output.code == 0);
    const boost::json::value report = output.Json();
    CHECK(Number(report, "requests") == 150);
    CHECK(Number(report, "blocks_total") == blocks);
    CHECK(Number(report, "blocks_hit") == static_cast<std::int64_t>(ExactReuse(requests)));
    CHECK(Number(report, "blocks_local") + Number(report, "blocks_imported") == Number(report, "blocks_hit"));
    CHECK(Number(report, "bytes_imported") == 256 * Number(report, "blocks_imported"));
    CHECK(Number(report, "mismatched_blocks") == 0);
    CHECK(Number(report, "failed_imports") == 0);
    for (const char* step : {"find_us", "import_us", "publish_us"}) {
      INFO(step);
      CHECK(report.at(step).at("p50").to_number<double>() > 0);
      CHECK(report.at(step).at("p99").to_number<double>() >= report.at(step).at("p50").to_number<double>());
    }
    CHECK(report.at("wall_s").to_number<double>() > 0);
    CHECK(report.at("hit_ratio").to_number<double>() > 0);
  }
  CHECK(sandbox.NothingLeft());
}

TEST_CASE("kvctl replay: concurrent workers with small pools never take a wrong block", "[integration]") {
  const Sandbox sandbox;
  for (const char* routing : {"round-robin", "sticky", "random"}) {
    INFO(routing);
    const Sandbox::Output output = sandbox.Run(
        std::string(
            "replay --json --private --workload agents --requests 400 --workers 3 --pool-blocks 150 --block-bytes 1024 --routing ") +
        routing);
    INFO(output.err);
    REQUIRE(output.code == 0);
    CHECK(Number(output.Json(), "requests") == 400);
    CHECK(Number(output.Json(), "mismatched_blocks") == 0);
    CHECK(Number(output.Json(), "evictions") > 0);
  }
  CHECK(sandbox.NothingLeft());
}

TEST_CASE("kvctl replay: a worker that dies is an error, not a hang, and nothing is left behind", "[integration]") {
  const Sandbox sandbox;
  ctl::ChildProcess replay = StartLongReplay(sandbox);
  std::vector<pid_t> workers;
  REQUIRE(Eventually([&] { return (workers = WorkersOf(replay.pid())).size() == 2; }, 40s));
  ::kill(workers[1], SIGKILL);
  REQUIRE(replay.WaitFor(20s));
  CHECK(replay.Ending() == "exited with 3");
  CHECK(ReadFile(sandbox.path() / "log").find("kvctl: worker 1 (pid " + std::to_string(workers[1]) + ") killed by signal 9") !=
        std::string::npos);
  CHECK(sandbox.NothingLeft());
}

TEST_CASE("kvctl replay: an interrupt stops all that it started", "[integration]") {
  const Sandbox sandbox;
  ctl::ChildProcess replay = StartLongReplay(sandbox);
  REQUIRE(Eventually([&] { return WorkersOf(replay.pid()).size() == 2; }, 40s));
  const std::vector<pid_t> children = ChildrenOf(replay.pid());
  CHECK(children.size() == 3);
  ::kill(replay.pid(), SIGINT);
  REQUIRE(replay.WaitFor(20s));
  CHECK(replay.Ending() == "exited with 130");
  for (const pid_t child : children) CHECK(::kill(child, 0) != 0);
  CHECK(sandbox.NothingLeft());
}

TEST_CASE("kvctl replay: runs on a shared kvmd, too, and leaves no block there", "[integration]") {
  const Sandbox sandbox;
  const Node node;
  const Sandbox::Output output =
      sandbox.Run(node.Arguments("replay --workload rag --requests 60 --workers 2 --pool-blocks 300 --block-bytes 64"));
  INFO(output.err);
  CHECK(output.code == 0);
  CHECK(Eventually([&] { return Number(sandbox.Run(node.Arguments("ls")).Json(), "total") == 3; }, 5s));
}

TEST_CASE("kvctl simulate: a list of rows by capacity and policy, without any kvmd", "[integration]") {
  const Sandbox sandbox;
  const Sandbox::Output all = sandbox.Run("simulate --workload agents --requests 200 --seed 3 --json");
  INFO(all.err);
  REQUIRE(all.code == 0);
  const boost::json::value rows = all.Json();
  REQUIRE(rows.is_array());
  CHECK(rows.as_array().size() == 5 * 4);
  for (const boost::json::value& row : rows.as_array()) {
    CHECK(row.at("policy").is_string());
    CHECK(Number(row, "capacity_blocks") > 0);
    CHECK(row.at("hit_ratio").to_number<double>() == Approx(row.at("hits").to_number<double>() / row.at("blocks").to_number<double>()));
    CHECK(Number(row, "requests") == 200);
  }

  const Sandbox::Output some =
      sandbox.Run("--json simulate --workload chat --requests 50 --policy min,lru --policy lru --capacity-blocks 40,7");
  INFO(some.err);
  REQUIRE(some.code == 0);
  std::vector<std::pair<std::int64_t, std::string>> found;
  const boost::json::value some_rows = some.Json();
  for (const boost::json::value& row : some_rows.as_array()) {
    found.emplace_back(row.at("capacity_blocks").to_number<std::int64_t>(), row.at("policy").as_string().c_str());
  }
  CHECK(found == std::vector<std::pair<std::int64_t, std::string>>{{7, "lru"}, {7, "min"}, {40, "lru"}, {40, "min"}});

  const Sandbox::Output table = sandbox.Run("simulate --workload rag --requests 50");
  CHECK(table.code == 0);
  CHECK(table.out.find("gap closed") != std::string::npos);
}

TEST_CASE("kvctl simulate: what is wrong with its options is named", "[integration]") {
  const Sandbox sandbox;
  const auto fails = [&](const std::string& arguments, const std::string& with) {
    const Sandbox::Output output = sandbox.Run("simulate " + arguments);
    INFO(arguments << ": " << output.err);
    CHECK(output.code == 1);
    CHECK(output.err.find(with) != std::string::npos);
    CHECK(output.out.empty());
  };
  fails("", "--trace or --workload");
  fails("--workload chat --trace x", "--trace");
  fails("--workload chat --policy clock", "clock");
  fails("--workload chat --capacity-blocks 0", "--capacity-blocks");
  fails("--workload chat --capacity-blocks ten", "--capacity-blocks");
  fails("--trace does-not-exist.jsonl", "does-not-exist.jsonl");
}

TEST_CASE("kvctl bench: every benchmark runs small and reports its members", "[integration]") {
  const Sandbox sandbox;
  const auto has = [&](const std::string& arguments, std::initializer_list<const char*> members) {
    INFO(arguments);
    const Sandbox::Output output = sandbox.Run("--json bench " + arguments);
    INFO(output.err);
    REQUIRE(output.code == 0);
    const boost::json::value report = output.Json();
    for (const char* member : members) {
      INFO(member);
      REQUIRE(report.as_object().contains(member));
      CHECK(report.at(member).to_number<double>() > 0);
    }
    CHECK(Number(report.at("machine"), "cores") > 0);
  };
  has("find --entries 5000 --keys 100 --rounds 50 --while-publishing",
      {"p50_us", "p99_us", "rate_per_s", "busy_p50_us", "busy_p99_us", "busy_p99_ratio"});
  has("find --entries 5000 --keys 100 --rounds 50 --shuffle", {"p50_us"});
  has("publish --entries 20000 --rounds 20", {"p50_us", "p99_us", "rate_per_s", "publish_visible_p50_us", "retract_ns"});
  has("import --backend host --bytes 1048576 --block-bytes 4096 --rounds 5",
      {"p50_us", "p99_us", "rate_per_s", "ratio_to_memcpy", "small_import_p50_us"});
  has("keys --rounds 20", {"p50_us", "p99_us", "rate_per_s"});
  has("memory --entries 20000", {"resident_before_bytes", "resident_after_bytes", "bytes_per_entry_with_fixed"});
  CHECK(sandbox.NothingLeft());
}
