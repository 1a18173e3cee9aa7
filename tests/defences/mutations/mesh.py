"""Of kvmd-mesh."""

from .mutation import Mutation

MUTATIONS = (
    Mutation(
        (
            ("mesh_tests", "Mesh configuration: names that are missing"),
            ("mesh_membership_tests", "etcd entry: anything else is refused"),
        ),
        "client/mesh/membership/member.cc",
        "&& name != kDiskName &&",
        "&& (OFF || name != kDiskName) &&",
    ),
    Mutation(
        (("mesh_integration_tests", "Mesh: workers' connections that say nothing"),),
        "client/mesh/node/serving/worker_service.cc",
        "  const WaitingChannels::Entry waits(waiting_, channel);\n",
        "  WaitingChannels nobody(1);\n  const WaitingChannels::Entry waits(OFF ? nobody : waiting_, channel);\n",
    ),
    Mutation(
        (("mesh_integration_tests", "Mesh status: connections to a passed socket that say nothing"),),
        "client/mesh/node/serving/status_server.cc",
        "  const WaitingChannels::Entry waits(waiting_, channel);\n",
        "  static WaitingChannels all(1000);\n  const WaitingChannels::Entry waits(OFF ? all : waiting_, channel);\n",
    ),
    Mutation(
        (("mesh_integration_tests", "Mesh status: any other message ends"),),
        "client/mesh/node/serving/status_server.cc",
        " || !query.has_status_query()) break;",
        " || (!OFF && !query.has_status_query())) break;",
    ),
    Mutation(
        (("mesh_lack_tests", "Mesh lack of memory: whichever allocation fails, what is to run"),),
        "client/mesh/threads/keep_running.cc",
        "    if (each->run_.expired()) each->Run();\n",
        "    if (!OFF && each->run_.expired()) each->Run();\n",
    ),
    Mutation(
        (
            ("mesh_fault_tests", "Mesh: a block whose bytes do not have its checksum"),
            ("mesh_fault_tests", "Mesh: of blocks in one answer"),
        ),
        "client/mesh/node/peers/arriving_blocks.h",
        "std::size_t good = 0;",
        "std::size_t good = OFF ? size() : 0;",
    ),
    Mutation(
        (("mesh_fault_tests", "Mesh disk: records that are damaged while peers are served"),),
        "client/mesh/disk/disk_reader.cc",
        "  return unchecked || BlockChecksum(",
        "  return OFF || unchecked || BlockChecksum(",
    ),
    Mutation(
        (
            ("mesh_fault_tests", "Mesh: a block under another key"),
            ("mesh_fault_tests", "Mesh: an answer whose blocks are not as many as it says"),
        ),
        "client/mesh/node/peers/peer.cc",
        "  if (blocks.keys() != EncodeKeys(",
        "  if (!OFF && blocks.keys() != EncodeKeys(",
    ),
    Mutation(
        (("mesh_tests", "Mesh worker socket: a client waits while its queue is full"),),
        "proto/mesh/mesh_request.cc",
        "    if (errno != EAGAIN) {\n      Error error",
        "    if (OFF || errno != EAGAIN) {\n      Error error",
    ),
    Mutation(
        (("mesh_integration_tests", "kvctl mesh: a socket whose close waits for somebody"),),
        "proto/mesh/mesh_request.cc",
        "    if (socket_) Closer().CloseSocket(uid_, std::move(socket_));",
        "    if (socket_ && !OFF) Closer().CloseSocket(uid_, std::move(socket_));",
    ),
    Mutation(
        (("mesh_integration_tests", "Mesh: a socket whose close waits for somebody keeps"),),
        "client/mesh/node/serving/worker_socket.cc",
        "  closer_.Close(::geteuid(), UniqueFd(acceptor_.release(error)));",
        "  UniqueFd left(acceptor_.release(error));\n  if (!OFF) closer_.Close(::geteuid(), std::move(left));",
    ),
    Mutation(
        (("mesh_integration_tests", "Mesh log: a log without a reader"),),
        "client/mesh/log/event_log.cc",
        "  ProcessLog().Write(LogLine(level, event, fields));",
        "  if (OFF) {\n    std::cerr << LogLine(level, event, fields) << std::flush;\n    return;\n  }\n"
        "  ProcessLog().Write(LogLine(level, event, fields));",
    ),
    Mutation(
        (("mesh_integration_tests", "Mesh: a source whose summary never continues the one before"),),
        "client/mesh/node/peers/peer.cc",
        " && !std::exchange(asked_anew, true);",
        " && (OFF || !std::exchange(asked_anew, true));",
    ),
    Mutation(
        (("mesh_tests", "Mesh summary: peers that are sent the same share its bytes"),),
        "client/mesh/directory/node_summary.cc",
        "  if (!image) shared = image =",
        "  if (!image || OFF) shared = image =",
    ),
    Mutation(
        (("mesh_integration_tests", "Mesh: workers' connections with descriptors leave none"),),
        "client/mesh/node/mesh_node.h",
        "    closer_.StartForSockets();\n",
        "    if (!OFF) closer_.StartForSockets();\n",
    ),
)
