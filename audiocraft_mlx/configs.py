"""Typed reading of checkpoint configurations, with errors that name the file and the key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from audiocraft_mlx.errors import CheckpointError

_REQUIRED: Any = object()


class ConfigSection:
    """One mapping inside a checkpoint's configuration, JSON or YAML.

    Every method that reads a key takes as `default` the value that upstream's code falls back to; without
    one the key is required. All raise `CheckpointError`. `${...}` interpolations are resolved only in values
    that are read, because a release's YAML has some that can't be resolved outside of its training.

    Args:
        values: the mapping.
        source: the file that it comes from, for error messages.
        path: where it stands in the file: its keys, joined by dots.
    """

    def __init__(self, values: Mapping[str, Any] | DictConfig, source: str, path: str = "") -> None:
        self._values = values
        self._source = source
        self._path = path

    @classmethod
    def from_yaml(cls, text: str, source: str) -> ConfigSection:
        """Parse the YAML text of audiocraft's `xp.cfg`. Raises `CheckpointError`."""
        try:
            values = OmegaConf.create(text)
        # PyYAML and OmegaConf raise exceptions of many classes; the text is at fault in all cases.
        except Exception as error:
            raise CheckpointError(f"{source}: xp.cfg is not valid YAML; download the file again") from error
        if not isinstance(values, DictConfig):
            raise CheckpointError(f"{source}: xp.cfg is not a mapping; download the file again")
        return cls(values, source)

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
        if not isinstance(value, (Mapping, DictConfig)):
            raise self.error(key, "is not a mapping")
        return ConfigSection(value, self._source, self._full(key))

    def required_section(self, key: str) -> ConfigSection:
        """The mapping under `key`, which must be there."""
        if key not in self:
            raise self.error(key, "is missing")
        return self.section(key)

    def integer(self, key: str, default: Any = _REQUIRED, minimum: int = 1) -> int:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value < 2**31:
            raise self.error(key, f"is {value!r}, not an integer of at least {minimum}")
        return value

    def number(self, key: str, default: Any = _REQUIRED) -> float:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
            raise self.error(key, f"is {value!r}, not a number")
        return float(value)

    def boolean(self, key: str, default: Any = _REQUIRED) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, f"is {value!r}, not true or false")
        return value

    def string(self, key: str, default: Any = _REQUIRED) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self.error(key, f"is {value!r}, not a string")
        return value

    def choice(self, key: str, choices: Sequence[str], default: Any = _REQUIRED) -> str:
        """A string that is one of `choices`."""
        value = self.string(key, default)
        if value not in choices:
            raise self.error(key, f"is {value!r}; only {' and '.join(map(repr, choices))} are supported")
        return value

    def integers(self, key: str, default: Any = _REQUIRED, minimum: int = 0) -> tuple[int, ...]:
        value = self._list(key, default)
        if not all(
            isinstance(item, int) and not isinstance(item, bool) and item >= minimum for item in value
        ):
            raise self.error(key, f"is {value!r}, not a list of integers of at least {minimum}")
        return tuple(value)

    def numbers(self, key: str, default: Any = _REQUIRED) -> tuple[float, ...]:
        value = self._list(key, default)
        if not all(isinstance(item, (int, float)) and not isinstance(item, bool) for item in value):
            raise self.error(key, f"is {value!r}, not a list of numbers")
        return tuple(float(item) for item in value)

    def strings(self, key: str, default: Any = _REQUIRED) -> tuple[str, ...]:
        value = self._list(key, default)
        if not all(isinstance(item, str) for item in value):
            raise self.error(key, f"is {value!r}, not a list of strings")
        return tuple(value)

    def require(self, key: str, supported: Any, default: Any = _REQUIRED) -> None:
        """Refuse any value but `supported`: others configure networks that are not implemented here."""
        value = self._get(key, default)
        if isinstance(value, ListConfig):
            value = list(value)
        if isinstance(value, DictConfig):
            value = dict(value)
        if value != supported or isinstance(value, bool) != isinstance(supported, bool):
            raise self.error(key, f"is {value!r}; only {supported!r} is supported")

    def error(self, key: str, problem: str) -> CheckpointError:
        """The error that `key` has this problem (the end of the sentence), for the caller to raise."""
        return CheckpointError(f"{self._source}: '{self._full(key)}' in its configuration {problem}")

    def _full(self, key: str) -> str:
        return f"{self._path}.{key}" if self._path else key

    def _list(self, key: str, default: Any) -> list[Any]:
        value = self._get(key, default)
        if not isinstance(value, (list, tuple, ListConfig)):
            raise self.error(key, f"is {value!r}, not a list")
        return list(value)

    def _get(self, key: str, default: Any) -> Any:
        try:
            value = self._values.get(key, _REQUIRED)
        except OmegaConfBaseException as error:
            raise self.error(key, "can't be resolved") from error
        if value is _REQUIRED:
            value = default
        if value is _REQUIRED:
            raise self.error(key, "is missing")
        return value
