"""What a pickle may hold besides plain values: names of classes, OmegaConf's containers, unknown objects.

None of them is an object of its class: nothing is imported, and no code of a class runs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

_CONTAINERS = {"omegaconf.dictconfig.DictConfig": dict, "omegaconf.listconfig.ListConfig": list}
_UNION = "omegaconf.base.UnionNode"
_NODE = re.compile(r"omegaconf\.nodes\.[A-Za-z]{1,40}")
_METADATA = ("omegaconf.base.Metadata", "omegaconf.base.ContainerMetadata")

INERT_CALLS = frozenset(
    {
        *("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
        *("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"),
        *("_codecs.encode", "builtins.set", "__builtin__.set"),
        *("pathlib.PosixPath", "pathlib.WindowsPath", "pathlib._local.PosixPath"),
        *("pathlib._local.WindowsPath", "torch.serialization._get_layout"),
        "torch.distributed._shard.sharded_tensor.metadata.MEM_FORMAT_ENCODING",
    }
)
"""Functions and classes by which programs save numbers, sets and paths beside the weights of a training, and
FSDP a process' own part of them. What they return is an `InertObject`."""
SHARD = "torch._utils._rebuild_wrapper_subclass"
"""The function that makes a tensor of which each process has a part."""
SHARDED_TENSOR = "torch.distributed._shard.sharded_tensor.api.ShardedTensor"
"""The class of such a tensor. A class in it is referenced by a call of `getattr`."""


@dataclass(frozen=True)
class GlobalRef:
    """A class or function that the file references by its dotted name; never imported."""

    name: str


@dataclass(frozen=True)
class InertObject:
    """An object of the class, or by the function, of this dotted name. Its content is dropped."""

    name: str


@dataclass(eq=False)
class ConfigRecord:
    """An object of one of OmegaConf's classes: the attributes that its pickle gives it, None before that."""

    name: str
    attributes: dict[str, Any] | None = None

    def content(self) -> object:
        """The dict, the list or the value that it stands for, whose parts may be records again.

        A container may be a string or None instead: a reference (`${...}`), `???`, or null. The records of
        its parents and of its types, which make circles, are left out. Raises `ValueError`.
        """
        attributes = self.attributes or {}
        if self.name in _METADATA:
            return InertObject(self.name)
        name = "_val" if _NODE.fullmatch(self.name) else "_content"
        if name not in attributes:
            raise ValueError("an OmegaConf object without its content")
        content = attributes[name]
        kind = _CONTAINERS.get(self.name)
        if kind is not None and content is not None and not isinstance(content, (kind, str)):
            raise ValueError("an OmegaConf object whose content is of another type")
        return content


def is_config_class(name: str) -> bool:
    """Whether it is one of OmegaConf's classes whose objects a configuration consists of."""
    return name in _CONTAINERS or name == _UNION or name in _METADATA or _NODE.fullmatch(name) is not None
