"""Finds the configuration for a model's name: a type, a folder, a file, a hub name or a preset."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

from ... import configs
from ..errors import ModelError
from .config_overrides import changed_fields

PRESETS = resources.files(configs) / "models"


@dataclass(frozen=True)
class ModelChoice:
    """A configuration with the batch and sequence length that a preset requests (None if there is no preset)."""

    name: str
    config: PreTrainedConfig
    batch: int | None = None
    sequence: int | None = None
    dtype: str = "float32"


def preset_names() -> tuple[str, ...]:
    """Return the presets of `configs/models`, sorted."""
    names = (file.name for file in PRESETS.iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml")))


def choose_model(name: str, overrides: Mapping[str, Any] | None = None) -> ModelChoice:
    """Return the configuration that `name` stands for, with `overrides` applied.

    A name is looked up as a preset, a model type, a local path, and last, if written `owner/name`, on the hub.
    Raises ModelError if it is none of these, or the configuration refuses the overrides.
    """
    overrides = overrides or {}
    if name in preset_names():
        return _from_preset(name, overrides)
    if name in CONFIG_MAPPING:
        return ModelChoice(name, _configured(name, {}, overrides))
    if Path(name).exists() or name.endswith(".json") or name.startswith((".", "/", "~")):
        return ModelChoice(name, _from_raw(name, _read_local(name), overrides))
    if name.count("/") == 1:
        return ModelChoice(name, _from_raw(name, _read_hub(name), overrides))
    known = [*preset_names(), *CONFIG_MAPPING]
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise ModelError(
        f"no model is called {name!r}: {hint}A model is a preset ({', '.join(preset_names())}), a type "
        "that transformers knows (gpt2, llama, bert, ...), a local folder or config.json, or a hub name "
        "written owner/name"
    )


def _from_preset(name: str, overrides: Mapping[str, Any]) -> ModelChoice:
    preset = tomllib.loads((PRESETS / f"{name}.toml").read_text(encoding="utf-8"))
    default = _configured(preset["model"], {}, {})
    config = _configured(preset["model"], changed_fields(default, preset.get("config", {})), overrides)
    return ModelChoice(name, config, preset.get("batch"), preset.get("sequence"), preset.get("dtype", "float32"))


def _from_raw(name: str, raw: dict[str, Any], overrides: Mapping[str, Any]) -> PreTrainedConfig:
    kind = raw.pop("model_type", None)
    if kind not in CONFIG_MAPPING:
        raise ModelError(f"{name} is configured as model_type {kind!r}, which transformers does not know")
    return _configured(kind, raw, overrides)


def _configured(kind: str, raw: Mapping[str, Any], overrides: Mapping[str, Any]) -> PreTrainedConfig:
    """Return a configuration of type `kind` from `raw` fields, then `overrides` typed by the values present then.

    The class is built again with all fields, rather than changed in place. Fields that follow from others (head size,
    types of layers) then follow the new ones.
    """
    make = CONFIG_MAPPING[kind]
    try:
        changed = changed_fields(make.from_dict(dict(raw)), overrides)
        fields = {make.attribute_map.get(key, key): value for key, value in raw.items()}
        return make.from_dict({**fields, **changed})
    except ModelError:
        raise
    except Exception as error:  # transformers' configurations raise errors of many types
        settings = ", ".join(f"{key}={value}" for key, value in overrides.items())
        raise ModelError(f"{kind} cannot be configured with {settings or 'its defaults'}: {error}") from error


def _read_local(name: str) -> dict[str, Any]:
    path = Path(name).expanduser()
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise ModelError(f"{file} does not exist; give a folder with a config.json, or the path of one")
    try:
        raw, _ = PreTrainedConfig.get_config_dict(str(file), local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} is not a configuration of a transformers model: {error}") from error
    return raw


def _read_hub(name: str) -> dict[str, Any]:
    try:
        raw, _ = PreTrainedConfig.get_config_dict(name)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{name} is not a local folder and cannot be read from the hub: {error}. Without a network, "
            "build the same shape from its type, for example: gpt2 --set n_layer=24 --set n_embd=1024"
        ) from error
    return raw
