"""Typed reading of checkpoint configurations, with errors that name the file and the key."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from audiocraft_mlx.errors import CheckpointError

_REQUIRED: Any = object()


@dataclass(frozen=True)
class Range:
    """The valid values of a number, both ends included."""

    minimum: float
    maximum: float

    def __contains__(self, value: float) -> bool:
        return self.minimum <= value <= self.maximum

    def __str__(self) -> str:
        return f"from {self.minimum:.10g} to {self.maximum:.10g}"


# Far above what any known model has, low enough that a network of these sizes is described in a moment.
# Whether its tensors fit is checked before any of them is read.
LAYERS = Range(1, 512)
HEADS = Range(1, 1024)
WIDTH = Range(1, 2**16)
HIDDEN_WIDTH = Range(1, 2**20)
CODEBOOKS = Range(1, 256)
CARDINALITY = Range(2, 2**16)
VOCABULARY = Range(1, 2**20)
KERNEL = Range(1, 4096)
CHANNELS = Range(1, 2)
SAMPLE_RATE = Range(100, 768_000)
DS_FACTOR = Range(1, 10_000)
NORM_EPS = Range(1e-12, 1)
"""Float32 must not round it to 0."""
SCALE = Range(-1e6, 1e6)
SEGMENT_SECONDS = Range(0.5, 600)
"""What a model was trained to generate in one window. Its keys and values are allocated for all of it."""
_POSITIVE = Range(1, 2**31 - 1)
_FINITE = Range(-math.inf, math.inf)

# A release's xp.cfg has 6 kB.
_MAX_YAML_BYTES = 2**17
_MAX_SHOWN = 100
_MAX_REFERENCES = 64
"""References that are followed to read one value."""
_MAX_TEXT = 4096
"""Characters of a text with references, once they are replaced."""
_REFERENCE = re.compile(r"\$\{([^{}]*)\}")
_PATH = re.compile(r"[A-Za-z_0-9-]+(\.[A-Za-z_0-9-]+)*")
# OmegaConf parses `${...}` with a grammar that takes seconds for a few kB. A placeholder makes it plain text.
_DOLLAR = "\ue000"
_ESCAPED_DOLLAR = re.compile(r"\\(x24|u0024|U00000024)")


def shown(value: object) -> str:
    """A value from an untrusted file, short and printable, for a one-line message."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        return "a huge number"
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def shown_text(text: str) -> str:
    """A name or a sentence from an untrusted file, as `shown` but without quotes."""
    return text if text.isprintable() and len(text) <= _MAX_SHOWN else shown(text)[1:].rstrip("'\"")


class ConfigSection:
    """One mapping inside a checkpoint's configuration, JSON or YAML.

    Every method that reads a key takes as `default` the value that upstream's code falls back to; without
    one the key is required. All raise `CheckpointError`.

    Of YAML's `${...}` only plain references to another key of the file (`${a.b}`) are known, never a resolver
    such as `${oc.env:NAME}`. They are resolved when the value is read, because a release's YAML has some
    that are for its training only.

    Args:
        values: the mapping.
        source: the file that it comes from, for error messages.
        path: where it stands in the file: its keys, joined by dots.
        root: the file's whole mapping, which references refer to; None for a file without references.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        source: str,
        path: str = "",
        root: Mapping[str, Any] | None = None,
    ) -> None:
        self._values = values
        self._source = source
        self._path = path
        self._root = root

    @classmethod
    def from_yaml(cls, text: str, source: str) -> ConfigSection:
        """Parse the YAML text of audiocraft's `xp.cfg`. Raises `CheckpointError`."""
        # Imported here: it takes a tenth of a second, and only audiocraft's checkpoints have YAML.
        from omegaconf import DictConfig, OmegaConf

        if len(text) > _MAX_YAML_BYTES or _ESCAPED_DOLLAR.search(text):
            raise CheckpointError(
                f"{source}: xp.cfg is not one that audiocraft writes; download the file again"
            )
        try:
            values = OmegaConf.create(text.replace("$", _DOLLAR))
            plain: Any = OmegaConf.to_container(values) if isinstance(values, DictConfig) else None
        # PyYAML and OmegaConf raise exceptions of many classes; the text is at fault in all cases.
        except Exception as error:
            raise CheckpointError(f"{source}: xp.cfg is not valid YAML; download the file again") from error
        if not isinstance(plain, dict):
            raise CheckpointError(f"{source}: xp.cfg is not a mapping; download the file again")
        return cls(plain, source, root=plain)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], source: str) -> ConfigSection:
        """audiocraft's `xp.cfg` as a training saves it: not as text. Raises `CheckpointError`."""
        left = _MAX_YAML_BYTES

        def with_placeholders(value: Any) -> Any:
            nonlocal left
            if isinstance(value, Mapping):
                return {key: with_placeholders(item) for key, item in value.items()}
            if isinstance(value, list):
                return [with_placeholders(item) for item in value]
            if not isinstance(value, str):
                return value
            left -= len(value)
            if left < 0:
                raise CheckpointError(
                    f"{source}: xp.cfg is not one that audiocraft writes; download the file again"
                )
            return value.replace("$", _DOLLAR)

        mapping = with_placeholders(values)
        return cls(mapping, source, root=mapping)

    def __contains__(self, key: str) -> bool:
        return self._get(key, None) is not None

    @property
    def keys(self) -> list[str]:
        return [str(key) for key in self._values]

    def section(self, key: str) -> ConfigSection:
        """The mapping under `key`; an absent one is read as empty, so that its keys take their defaults."""
        value = self._get(key, None)
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            raise self.error(key, "is not a mapping")
        return ConfigSection(value, self._source, self._full(key), self._root)

    def required_section(self, key: str) -> ConfigSection:
        """The mapping under `key`, which must be there."""
        if key not in self:
            raise self.error(key, "is missing")
        return self.section(key)

    def value(self, key: str) -> Any:
        """Of any type; None for an absent key."""
        return self._get(key, None)

    def integer(self, key: str, default: Any = _REQUIRED, within: Range = _POSITIVE) -> int:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value not in within:
            raise self.error(key, f"is {shown(value)}, not an integer {within}")
        return value

    def number(self, key: str, default: Any = _REQUIRED, within: Range = _FINITE) -> float:
        """A finite number."""
        value = self._get(key, default)
        if not _is_number(value) or value not in within:
            expected = "a number" if within is _FINITE else f"a number {within}"
            raise self.error(key, f"is {shown(value)}, not {expected}")
        return float(value)

    def boolean(self, key: str, default: Any = _REQUIRED) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, f"is {shown(value)}, not true or false")
        return value

    def string(self, key: str, default: Any = _REQUIRED) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self.error(key, f"is {shown(value)}, not a string")
        return value

    def name(self, key: str, default: Any = _REQUIRED) -> str:
        """A string that may name a repository or a folder: printable, and not long."""
        value = self.string(key, default)
        if len(value) > 200 or not value.isprintable():
            raise self.error(key, f"is {shown(value)}, not a name")
        return value

    def choice(self, key: str, choices: Sequence[str], default: Any = _REQUIRED) -> str:
        """A string that is one of `choices`."""
        value = self.string(key, default)
        if value not in choices:
            raise self.error(key, f"is {shown(value)}; only {' and '.join(map(repr, choices))} are supported")
        return value

    def integers(
        self, key: str, default: Any = _REQUIRED, within: Range = _POSITIVE, most: int = 256
    ) -> tuple[int, ...]:
        """Up to `most` integers."""
        value = self._list(key, default)
        if len(value) > most or not all(
            isinstance(item, int) and not isinstance(item, bool) and item in within for item in value
        ):
            raise self.error(key, f"is {shown(value)}, not a list of up to {most} integers {within}")
        return tuple(value)

    def numbers(
        self, key: str, default: Any = _REQUIRED, within: Range = _FINITE, most: int = 256
    ) -> tuple[float, ...]:
        """Up to `most` finite numbers."""
        value = self._list(key, default)
        if len(value) > most or not all(_is_number(item) and item in within for item in value):
            raise self.error(key, f"is {shown(value)}, not a list of up to {most} numbers {within}")
        return tuple(float(item) for item in value)

    def strings(self, key: str, default: Any = _REQUIRED) -> tuple[str, ...]:
        value = self._list(key, default)
        if not all(isinstance(item, str) for item in value):
            raise self.error(key, f"is {shown(value)}, not a list of strings")
        return tuple(value)

    def require(self, key: str, supported: Any, default: Any = _REQUIRED) -> None:
        """Refuse any value but `supported`: others configure networks that are not implemented here."""
        value = self._get(key, default)
        if isinstance(value, Mapping) and key in self._values:
            section = self.section(key)
            value = {name: section._get(name, None) for name in value}
        if value != supported or isinstance(value, bool) != isinstance(supported, bool):
            raise self.error(key, f"is {shown(value)}; only {supported!r} is supported")

    def error(self, key: str, problem: str) -> CheckpointError:
        """The error that `key` has this problem (the end of the sentence), for the caller to raise."""
        return CheckpointError(f"{self._source}: {shown(self._full(key))} in its configuration {problem}")

    def _full(self, key: str) -> str:
        return f"{self._path}.{key}" if self._path else key

    def _list(self, key: str, default: Any) -> list[Any]:
        value = self._get(key, default)
        if not isinstance(value, (list, tuple, range)):
            raise self.error(key, f"is {shown(value)}, not a list")
        return list(value)

    def _get(self, key: str, default: Any) -> Any:
        value = self._values.get(key, _REQUIRED)
        if value is not _REQUIRED and self._root is not None:
            value = _Resolver(self._root, self, key).resolve(value)
            if value == "???":  # OmegaConf's "not set"
                value = _REQUIRED
        if value is _REQUIRED:
            value = default
        if value is _REQUIRED:
            raise self.error(key, "is missing")
        return value


class _Resolver:
    """Replaces the references in one value, which `section` has under `key`; a mapping is left as it is."""

    def __init__(self, root: Mapping[str, Any], section: ConfigSection, key: str) -> None:
        self._root, self._section, self._key = root, section, key
        self._left = _MAX_REFERENCES

    def resolve(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.resolve(item) for item in value]
        if not isinstance(value, str) or _DOLLAR not in value:
            return value
        value = value.replace(_DOLLAR, "$")
        if "${" not in value:
            return value
        whole = _REFERENCE.fullmatch(value)
        if whole:
            return self._follow(whole[1])
        text = _REFERENCE.sub(lambda match: self._text(match[1]), value)
        if "${" in text:
            raise self._error(f"is {shown(value)}; only plain references such as ${{a.b}} are supported")
        return text

    def _text(self, path: str) -> str:
        value = self._follow(path)
        if not isinstance(value, (str, int, float)):
            raise self._error(f"refers to {shown(path)}, which is not a text")
        if isinstance(value, int) and not _is_number(value):
            raise self._error(f"refers to {shown(path)}, a huge number")
        text = str(value)
        self._left -= len(text) * _MAX_REFERENCES // _MAX_TEXT
        return text

    def _follow(self, path: str) -> Any:
        if not _PATH.fullmatch(path):
            raise self._error(
                f"needs {shown('${' + path + '}')} to be resolved; only plain references such as ${{a.b}} are"
                " supported"
            )
        self._left -= 1
        if self._left < 0:
            raise self._error("has references that are circular or too many")
        value: Any = self._root
        for part in path.split("."):
            # A part that is a reference itself, to the mapping where the next one is.
            value = self.resolve(value)
            if isinstance(value, list) and part.isdigit() and len(part) < 6 and int(part) < len(value):
                value = value[int(part)]
            elif isinstance(value, Mapping) and part in value:
                value = value[part]
            else:
                raise self._error(f"refers to {shown(path)}, which is not in the file")
        return self.resolve(value)

    def _error(self, problem: str) -> CheckpointError:
        return self._section.error(self._key, problem)


def _is_number(value: Any) -> bool:
    """Whether a value is a number that a float can hold, not NaN or infinite."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < 2**1000
