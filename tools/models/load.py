"""``load``: what MODEL names becomes a module and an example batch; a transformers class is found by its head."""

from __future__ import annotations

import importlib
import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from partitioner.errors import InputError
from partitioner.user_code.compiled import unwrap
from runtime.state.deferred_init import deferred
from runtime.state.parameters_on_meta import parameters_on_meta
from tools.models.entry_point import Entry, call, function, literals, nearest, one_line, parse, takes
from tools.models.hf_heads import POSITIONS, find_head, packed
from tools.models.plain_decoder import sized_decoder
from tools.models.shrink_config import shrink
from tools.models.text_length import text_length

SHRUNK_SEQ, BATCH = 32, 2


@dataclass(frozen=True)
class Source:
    """A loaded model. ``load(spec, settings, seq, batch_size)`` makes it again; ``settings`` are all that was used."""

    spec: str
    module: nn.Module
    batch: dict[str, Tensor]
    settings: dict[str, object]
    seq: int | None
    batch_size: int | None

    def __str__(self) -> str:
        """The spec, the class and every setting, on one line."""
        used = "".join(f" {key}={value}" for key, value in self.settings.items())
        shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in self.batch.items())
        kinds = sorted({str(p.dtype).removeprefix("torch.") for p in self.module.parameters()})
        length = f", {self.seq:,} tokens a sample" if self.seq else ""
        return f"{self.spec} ({type(self.module).__name__}){used}, {' and '.join(kinds)}{length}, batch {shapes}"


def load(
    spec: str,
    settings: Mapping[str, object] | None = None,
    seq: int | None = None,
    batch: int | None = None,
    meta: bool = False,
    shrink: bool = False,
    seed: int = 0,
    begins: bool = False,
) -> Source:
    """The module in training mode and an example batch of ``batch`` samples of ``seq`` tokens.

    Where ``seq`` is None a text of transformers is as long as its configuration allows, up to 8,192 tokens; what is
    longer, or not told, is asked for. With ``meta``, parameters have shapes and no storage (buffers are real); with
    ``begins`` it is noted beside that how each begins (``runtime.deferred_init``). With ``shrink`` a transformers model
    gets few layers, narrow widths and no dropout where ``settings`` do not say otherwise. The setting ``position_ids``
    of a text of transformers adds that argument, by which documents are kept apart, and turns off the cache, with which
    transformers does not. Raises InputError.
    """
    entry, given = parse(spec), literals(settings or {})
    storage = deferred() if begins else parameters_on_meta() if meta else nullcontext()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with storage as recording:
            found = _made(spec, entry, given, seq, batch, meta, shrink)
    if recording is not None:
        recording.keep(found.module)
    return found


def _made(
    spec: str, entry: Entry, given: dict[str, object], seq: int | None, batch: int | None, meta: bool, small: bool
) -> Source:
    if entry.kind == "file":
        return _from_file(spec, entry, given, seq, batch)
    if entry.kind == "plain":
        module, example = sized_decoder(given, seq, batch or BATCH, meta)
        return Source(spec, module, example, given, seq, batch)
    return _from_transformers(spec, entry, given, seq, batch or BATCH, small)


def save_config(source: Source, folder: str) -> None:
    """Write config.json for a transformers model, so that ``from_pretrained`` takes the folder."""
    if parse(source.spec).kind == "hf":
        config: Any = source.module.config
        config.architectures = [type(source.module).__name__]
        config.save_pretrained(folder)


def _from_file(spec: str, entry: Entry, given: dict[str, object], seq: int | None, batch: int | None) -> Source:
    model = function(entry)
    sizes = {key: value for key, value in (("seq", seq), ("batch", batch)) if value is not None and key not in given}
    if "seq" in sizes and not takes(model, "seq"):
        raise InputError(f"--seq: {entry.path}:{entry.name} has no argument seq; its batch decides the length")
    module, example = call(entry, model, given | {key: v for key, v in sizes.items() if takes(model, key)})
    return Source(spec, unwrap(module).train(), example, given, seq, batch)


def _transformers() -> ModuleType:
    """transformers, an optional dependency, with its advice about configurations silenced."""
    try:
        library = importlib.import_module("transformers")
    except ImportError as error:
        raise InputError("hf: models need transformers: pip install 'partitioner[hf]'") from error
    library.utils.logging.set_verbosity_error()
    return library


def _from_transformers(
    spec: str, entry: Entry, given: dict[str, object], seq: int | None, batch: int, small: bool
) -> Source:
    kind, base = _base(entry)
    default = _default(spec, kind, base)
    names = dict(getattr(kind, "attribute_map", {}))
    asked = {key: bool(value) for key, value in given.items() if key == POSITIONS}
    given = {key: value for key, value in given.items() if key not in asked}
    if any(asked.values()) and "use_cache" in default.to_dict():
        given = {"use_cache": False} | given
    given = {_known(key, default, names): value for key, value in given.items()}
    used = given | (shrink(default.to_dict(), names, given, seq or SHRUNK_SEQ) if small else {})
    used |= _special_tokens(default.to_dict() | used, given)
    config = _configure(spec, kind, _cut_lists(base, default.to_dict(), used) | used)
    head, model = find_head(spec, config)
    with _parameters_of(spec, used.get("dtype")):
        module = _build(spec, model, config, default if entry.path is None else None)
    length = text_length(spec, config, module, seq or (SHRUNK_SEQ if small else None)) if head.is_text else None
    example = head.batch(config, batch, length or 0)
    example = packed(spec, model, example) if any(asked.values()) else example
    return Source(spec, module.train(), example, used | asked, length, batch)


def _base(entry: Entry) -> tuple[type[Any], dict[str, Any]]:
    """The configuration class and the fields that the file gives."""
    _transformers()
    types = importlib.import_module("transformers.models.auto.configuration_auto").CONFIG_MAPPING
    fields = _read(entry.path) if entry.path else {"model_type": entry.name}
    name = str(fields.pop("model_type", None))
    if name not in types:
        where = f"{entry.path}: model_type" if entry.path else "hf:TYPE"
        raise InputError(f"{where} {name!r} is no model type of transformers{nearest(name, types.keys())[:200]}")
    return types[name], fields


def _read(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no readable config.json: {one_line(error)}") from error
    if not isinstance(fields, dict):
        raise InputError(f"{path} must hold one JSON object")
    return fields


def _default(spec: str, kind: type[Any], fields: Mapping[str, Any]) -> Any:
    """The configuration of the file or, of a type, transformers' own, which it may refuse itself."""
    try:
        return kind(**fields)
    except Exception as error:  # as in _configure
        raise InputError(f"{spec}: {one_line(error)}; mend it" if fields else refused(spec, error)) from error


def refused(spec: str, error: Exception) -> str:
    """What to say where a type's own configuration, with nothing set, makes no model."""
    kind = spec.removeprefix("hf:")
    return (
        f"transformers refuses its own default configuration for {kind}: {one_line(error)}; "
        "give what it lacks with --set, or a config.json"
    )


def _configure(spec: str, kind: type[Any], fields: Mapping[str, Any]) -> Any:
    try:
        return kind(**fields)
    except Exception as error:  # transformers' validators raise many types; each says which field is wrong
        raise InputError(f"{spec}: {one_line(error)}; mend it with --set") from error


@contextmanager
def _parameters_of(spec: str, dtype: object) -> Generator[None]:
    """Modules built inside hold parameters of ``dtype``, a name or None for float32."""
    wanted = torch.float32 if dtype is None else getattr(torch, str(dtype).removeprefix("torch."), None)
    if not isinstance(wanted, torch.dtype) or not wanted.is_floating_point:
        raise InputError(f"{spec}: dtype {dtype} is no floating-point dtype of torch: take float32 or bfloat16")
    before = torch.get_default_dtype()
    torch.set_default_dtype(wanted)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _build(spec: str, model: type[nn.Module], config: Any, default: Any) -> nn.Module:
    """Of ``config``; where that fails the type's ``default`` tells whether it is what was set or shrunk."""
    try:
        return model(config)
    except Exception as error:  # a model's constructor is where contradicting fields are noticed
        if default is not None and (own := _refusal(model, default)) is not None:
            raise InputError(refused(spec, own)) from own
        words = f"{model.__name__} refuses its configuration: {one_line(error)}; mend it with --set"
        raise InputError(f"{spec}: {words}") from error


def _refusal(model: type[nn.Module], config: Any) -> Exception | None:
    try:
        with parameters_on_meta():
            model(config)
    except Exception as error:
        return error
    return None


def _known(key: str, config: Any, names: Mapping[str, str]) -> str:
    """The configuration's own name of a field; properties like ``num_labels`` and special tokens it lacks count."""
    own = names.get(key, key)
    if own.endswith("_token_id") or (hasattr(config, own) and not callable(getattr(config, own))):
        return own
    raise InputError(f"--set {key}: not a field of {type(config).__name__}{nearest(key, {*config.to_dict(), *names})}")


def _special_tokens(fields: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Special tokens inside the vocabulary, and the start and padding tokens that a decoder cannot do without."""
    size = fields.get("vocab_size")
    changes: dict[str, Any] = {}
    for key, value in fields.items():
        if isinstance(size, int) and key.endswith("token_id") and key not in given:
            inside = _inside(value, size)
            changes |= {key: inside} if inside != value else {}
    if fields.get("is_encoder_decoder"):
        pad = fields.get("pad_token_id")
        needed = {"pad_token_id": 0, "decoder_start_token_id": 0 if pad is None else changes.get("pad_token_id", pad)}
        changes |= {key: value for key, value in needed.items() if fields.get(key) is None}
    return changes


def _inside(value: Any, size: int) -> Any:
    if isinstance(value, list):
        return [v % size for v in value]
    return value % size if isinstance(value, int) else value


def _cut_lists(base: dict[str, Any], full: Mapping[str, Any], used: Mapping[str, Any]) -> dict[str, Any]:
    """The file's fields, its one-entry-a-layer lists as long as the new depth."""
    depths = {full[k]: v for k, v in used.items() if k.endswith(("layers", "layer")) and isinstance(full.get(k), int)}
    return {k: v[: depths[len(v)]] if isinstance(v, list) and len(v) in depths else v for k, v in base.items()}
