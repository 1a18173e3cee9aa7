"""Defences, each with the change that takes it out and the tests that must fail then.

A change replaces one piece of a file, which has to occur there once. OFF in it stands for: this defence is left out.
Tests are named by their binary and the beginning of their sentence.
"""

from . import broker, client, host_cache, kvctl, mesh, proto, registry, server
from .mutation import Mutation

__all__ = ["MUTATIONS", "Mutation"]

MUTATIONS = (
    *broker.MUTATIONS,
    *client.MUTATIONS,
    *host_cache.MUTATIONS,
    *kvctl.MUTATIONS,
    *mesh.MUTATIONS,
    *proto.MUTATIONS,
    *registry.MUTATIONS,
    *server.MUTATIONS,
)
