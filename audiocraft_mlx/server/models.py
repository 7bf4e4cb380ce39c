"""The models that a server has, on disk and in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Literal

from audiocraft_mlx.checkpoints import hub_client
from audiocraft_mlx.checkpoints.lora_spec import LoraSpec
from audiocraft_mlx.checkpoints.model_files import (
    DEMO,
    SHORT_NAMES,
    cached_bytes,
    released_as_magnet,
    released_condition_types,
)
from audiocraft_mlx.clips.defaults import AUDIOGEN, MUSICGEN, CommandDefaults
from audiocraft_mlx.clips.requests import ModelOptions
from audiocraft_mlx.errors import DownloadError, MusicGenError, UsageError
from audiocraft_mlx.files import expand_home
from audiocraft_mlx.machine import is_out_of_memory
from audiocraft_mlx.server.errors import NotFoundError, public_message
from audiocraft_mlx.server.schema import ModelInfo

if TYPE_CHECKING:
    from audiocraft_mlx.models.genmodel import GenModel

_GIGABYTES = {
    "small": 0.84,
    "medium": 3.7,
    "large": 6.5,
    "melody": 2.8,
    "melody-large": 4.9,
    "stereo-small": 0.87,
    "stereo-medium": 3.7,
    "stereo-large": 6.6,
    "stereo-melody": 2.8,
    "stereo-melody-large": 4.9,
    "style": 2.8,
    "audiogen-medium": 3.7,
}
"""To download, without the text encoder and the codec."""
SHORT_OF = {repo: short for short, repo in SHORT_NAMES.items()}
"""The released models' short names, by which they are listed."""
# A file may hold float16 of what is float32 in memory.
_GROWTH = 2
# Clips of a batch need some, too.
_SPARE_BYTES = 1 << 30
_State = Literal["loaded", "loading", "on disk", "to download"]


class Models:
    """The default model, it with each adapter, the released ones and the demo model, by name.

    `load` is for the thread that generates; the other methods are thread-safe.
    """

    def __init__(
        self,
        default: ModelOptions,
        allow_downloads: bool,
        on_change: Callable[[list[ModelInfo]], None],
        lora: Sequence[LoraSpec] = (),
    ) -> None:
        """`on_change` gets the list of models when one is loaded, or dropped.

        Raises `UsageError`: two adapters have the same name.
        """
        self._default_options, self._allow_downloads, self._on_change = default, allow_downloads, on_change
        self.default = display_name(default.name)
        self._adapted = {
            adapted_name(default, spec): replace(default, lora=(*default.lora, spec)) for spec in lora
        }
        if len(self._adapted) < len(lora):
            raise UsageError("--lora: two adapters have the same name; rename the folder of one")
        self.names = tuple(dict.fromkeys((self.default, *self._adapted, *SHORT_NAMES, DEMO)))
        self._lock = Lock()
        self._loaded: dict[str, GenModel] = {}
        """The least recently used first."""
        self._loading: set[str] = set()
        self._errors: dict[str, str] = {}
        if not allow_downloads:
            hub_client.forbid_downloads()

    def name_of(self, name: str | None) -> str:
        """`name` as it is in the list; None is the default. Raises `NotFoundError`."""
        if name is None:
            return self.default
        short = SHORT_OF.get(name, name)
        if short not in self.names:
            raise NotFoundError(
                f"model: there is no model {name[:80]!r}; choose one of the list of models", "model"
            )
        return short

    def known_name(self, name: str, lora: object = None) -> str | None:
        """A name in the list for the model and adapter that a file's tags name; None: another one.

        Reads no disk.
        """
        if lora is not None:
            for adapted, options in self._adapted.items():
                if name == options.name and lora == str(options.lora[-1]):
                    return adapted
            return None
        if name == self._default_options.name:
            return self.default
        short = SHORT_OF.get(name, name)
        return short if short in self.names else None

    def options(self, name: str) -> ModelOptions:
        """How a model of the list is loaded."""
        if name == self.default:
            return self._default_options
        if name in self._adapted:
            return self._adapted[name]
        return ModelOptions(SHORT_NAMES.get(name, name))

    def program(self, name: str) -> CommandDefaults:
        model = self.options(name).name
        return AUDIOGEN if SHORT_NAMES.get(model, model) == AUDIOGEN.model else MUSICGEN

    def loaded(self, name: str) -> GenModel | None:
        with self._lock:
            return self._loaded.get(name)

    def condition_types(self, name: str) -> frozenset[str] | None:
        """What a model can be conditioned on, if that is known."""
        model = self.loaded(name)
        return released_condition_types(self.options(name).name) if model is None else model.condition_types

    def fills_masks(self, name: str) -> bool | None:
        """Whether it is a MAGNeT, if that is known."""
        model = self.loaded(name)
        return released_as_magnet(self.options(name).name) if model is None else model.fills_masks

    def require_available(self, name: str) -> None:
        """Raise `UsageError` if it would have to be downloaded, and may not be."""
        if not self._allow_downloads and self.loaded(name) is None and self._bytes(name) is None:
            raise UsageError(
                f"the model {name} is not on this machine; choose one that is, or start the server with"
                " --allow-downloads"
            )

    def request(self, name: str) -> None:
        """It will be loaded: until then it counts as loading."""
        with self._lock:
            if name in self._loaded or name in self._loading:
                return
            self._loading.add(name)
            self._errors.pop(name, None)
        self._on_change(self.list())

    def load(self, name: str) -> GenModel:
        """The model, loaded if it isn't yet; others are dropped if they don't fit beside it.

        Raises what `get_pretrained` does.
        """
        with self._lock:
            model = self._loaded.pop(name, None)
            if model is not None:
                self._loaded[name] = model  # now the most recently used
        if model is not None:
            with self._lock:
                self._loading.discard(name)
            return model
        self.request(name)
        try:
            model = self._load(name)
        except Exception as error:
            with self._lock:
                self._loading.discard(name)
                self._errors[name] = describe_failure(error)
            self._on_change(self.list())
            raise
        with self._lock:
            self._loading.discard(name)
            self._loaded[name] = model
        self._on_change(self.list())
        return model

    def drop_all(self) -> None:
        """Free the memory that the models take."""
        with self._lock:
            self._loaded.clear()

    def list(self) -> list[ModelInfo]:
        """The default one first."""
        return [self.info(name) for name in self.names]

    def info(self, name: str) -> ModelInfo:
        model, size = self.loaded(name), self._bytes(name)
        state: _State = "to download" if size is None else "on disk"
        if model is not None:
            state = "loaded"
        elif name in self._loading:
            state = "loading"
        types = self.condition_types(name) or frozenset()
        return ModelInfo(
            name=name,
            state=state,
            gigabytes=_GIGABYTES.get(name) if size is None else round(size / 1e9, 2),
            default=name == self.default,
            conditions=[kind for kind in ("melody", "style") if kind in types],
            fills_masks=bool(self.fills_masks(name)),
            max_duration=None if model is None else model.max_duration,
            sample_rate=None if model is None else model.sample_rate,
            channels=None if model is None else model.audio_channels,
            error=self._errors.get(name),
        )

    def _load(self, name: str) -> GenModel:
        from audiocraft_mlx.models.audiogen import AudioGen
        from audiocraft_mlx.models.loading import load_model
        from audiocraft_mlx.models.musicgen import MusicGen

        self.require_available(name)
        self._make_room(_GROWTH * (self._bytes(name) or 0) + _SPARE_BYTES)
        options = self.options(name)
        kind: type[GenModel] = AudioGen if self.program(name) is AUDIOGEN else MusicGen
        try:
            return load_model(
                kind,
                options.name,
                revision=options.revision,
                quantize=options.quantize,
                int8_activations=options.int8_activations,
                cache_bits=options.cache_bits,
                lora=options.lora,
            )
        except DownloadError as error:
            if self._allow_downloads:
                raise
            raise DownloadError(
                f"a part of the model {name} is not on this machine ({error}); start the server with"
                " --allow-downloads"
            ) from error

    def _make_room(self, needed: int) -> None:
        """Drop models, the least recently used first, until `needed` bytes are free or none is left."""
        from audiocraft_mlx.models.memory import available_memory, give_back_memory

        while available_memory() < needed:
            with self._lock:
                if not self._loaded:
                    return
                del self._loaded[next(iter(self._loaded))]
            give_back_memory()

    def _bytes(self, name: str) -> int | None:
        """On disk; None: it isn't there."""
        path = self.options(name).name
        if path == DEMO:
            return _folder_bytes(Path(__file__).parent.parent / DEMO)
        repo = SHORT_NAMES.get(path, path)
        folder = expand_home(path)
        if path not in SHORT_NAMES and folder.is_dir():
            return _folder_bytes(folder)
        return cached_bytes(repo) if hub_client.is_repo_name(repo) else None


def describe_failure(error: BaseException) -> str:
    """A sentence about why something couldn't be done."""
    if isinstance(error, MusicGenError):
        return " ".join(public_message(error).split())
    if is_out_of_memory(error):
        return "out of memory; try a shorter duration, fewer takes or a smaller model"
    return f"an unexpected error ({type(error).__name__}); the server's log has more"


def display_name(name: str) -> str:
    """A model's name in the list: no client is told where a folder is."""
    if name in SHORT_OF:
        return SHORT_OF[name]
    folder = expand_home(name)
    if name not in SHORT_NAMES and name != DEMO and folder.is_dir():
        own = folder.resolve().name
        return own if own not in SHORT_NAMES and own != DEMO else f"{own} (folder)"
    return name


def adapted_name(model: ModelOptions, spec: LoraSpec) -> str:
    """The name in the list of a model with an adapter: as `display_name`."""
    return f"{display_name(model.name)} + {spec.without_folder()}"


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
