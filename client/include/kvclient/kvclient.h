// libkvclient: share KV cache blocks between the inference processes of one node.
//
//   auto client = kvm::Client::Connect({.socket_path = "/run/kvmd/kvmd.sock", .name = "worker-0"});
//   auto model  = (*client)->DeclareModel(spec, kvm::After(1s));
//   auto region = (*client)->AllocateRegion(*model, {.name = "pool", .geometry = …}, After(1s));
//
//   match  = (*client)->Find(keys);                        keys: kvm::KeyChain, kvm/block_key.h
//   ticket = (*client)->Import(match, **region, blocks);   ticket->Wait(…); ticket->result().valid
//   (*region)->Publish(…)
//
// client.h     connection, models, lookup, import     region.h     publishing memory
// match.h      result of a lookup                     import.h     progress and result of a copy
// lease.h      blocks that kvmd promises to keep      computing.h  blocks that are being computed
// join.h       blocks of other nodes                  describe.h   tokens of blocks, for routers
// interrupt.h  ends a thread's waits early            stats.h      what a client counts
// types.h      deadlines, block writes, models
// kvm/         keys, model spec, geometry, errors, GPUs and their memory
#pragma once

#include "kvclient/client.h"
#include "kvclient/computing.h"
#include "kvclient/describe.h"
#include "kvclient/import.h"
#include "kvclient/interrupt.h"
#include "kvclient/join.h"
#include "kvclient/lease.h"
#include "kvclient/match.h"
#include "kvclient/region.h"
#include "kvclient/stats.h"
#include "kvclient/types.h"
