"""Where this node's kvmd-mesh is, which brings blocks of other nodes (``Client.join_cache``)."""

from __future__ import annotations

import os


def default_mesh_socket() -> str:
    """Path of the socket of this user's kvmd-mesh, where its systemd unit puts it."""
    return f"/run/kvmd-mesh/{os.geteuid()}/mesh.sock"


def has_mesh(socket_path: str | None = None) -> bool:
    """Say whether there is a kvmd-mesh to ask, by its socket alone: cheap, and without asking it.

    ``socket_path``: of its socket; None or empty: this user's.
    """
    return os.path.exists(socket_path or default_mesh_socket())


__all__ = ["default_mesh_socket", "has_mesh"]
