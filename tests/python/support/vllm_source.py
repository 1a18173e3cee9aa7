"""A release of vLLM by its source, which need not be importable: a wheel for GPUs can be read on any machine."""

from __future__ import annotations

import ast
import functools
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Class:
    """Names that a class body defines or its methods assign to ``self``, and its methods."""

    bases: list[str]
    names: set[str] = field(default_factory=set)
    #: Annotated names of the body, in order: a dataclass's fields.
    fields: list[str] = field(default_factory=list)
    methods: dict[str, _Function] = field(default_factory=dict)

    @property
    def abstract(self) -> set[str]:
        return {
            name
            for name, method in self.methods.items()
            if any(ast.unparse(each) == "abstractmethod" for each in method.decorator_list)
        }


class Source:
    """The package ``vllm`` in a folder."""

    def __init__(self, folder: Path) -> None:
        self._package = folder / "vllm"
        assert self._package.is_dir(), f"{folder} has no vllm"

    def tree(self, path: str) -> ast.Module:
        """A file's syntax, by its path below ``vllm/``."""
        return _parse(self._package / path)

    def classes(self, path: str) -> dict[str, Class]:
        return {node.name: read_class(node) for node in ast.walk(self.tree(path)) if isinstance(node, ast.ClassDef)}

    def functions(self, path: str) -> set[str]:
        """Names that a file defines at its top."""
        return {node.name for node in self.tree(path).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}

    def has(self, path: str) -> bool:
        return (self._package / path).exists()

    def called(self, folder: str) -> set[str]:
        """Names of all methods that the files of a folder call."""
        files = sorted((self._package / folder).rglob("*.py"))
        assert files, folder
        return {
            node.func.attr
            for file in files
            for node in ast.walk(_parse(file))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        }


@functools.cache
def _parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def read_class(node: ast.ClassDef) -> Class:
    found = Class([ast.unparse(base) for base in node.bases])
    for part in node.body:
        if isinstance(part, _Function):
            found.methods[part.name] = part
            found.names |= {part.name, *_assigned(part)}
        elif isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            found.names.add(part.target.id)
            if "ClassVar" not in ast.unparse(part.annotation) and "InitVar" not in ast.unparse(part.annotation):
                found.fields.append(part.target.id)
        elif isinstance(part, ast.Assign):
            found.names |= {each.id for each in part.targets if isinstance(each, ast.Name)}
    return found


def _assigned(method: _Function) -> Iterator[str]:
    for node in ast.walk(method):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


def releases() -> dict[str, Source]:
    """The installed release, and the one in the folder ``KVM_VLLM_SOURCE`` (scripts/vllm_interface.sh sets it)."""
    found = {}
    spec = importlib.util.find_spec("vllm")
    if spec is not None and spec.origin is not None:
        found["installed"] = Source(Path(spec.origin).parents[1])
    if folder := os.environ.get("KVM_VLLM_SOURCE"):
        found[Path(folder).name] = Source(Path(folder))
    return found


__all__ = ["Class", "Source", "read_class", "releases"]
