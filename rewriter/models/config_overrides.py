"""Applies changes to a model's configuration, `n_layer=4` or `text_config.hidden_size=64`, checked and typed."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from transformers import PreTrainedConfig

from ..errors import ModelError

# Names that every configuration reads although none lists them as a field.
_ALWAYS_KNOWN = ("num_labels", "attn_implementation", "experts_implementation")


def parse_settings(settings: Iterable[str]) -> dict[str, str]:
    """Return `["n_layer=4", "dropout=0"]` of the command line as a mapping of text to text.

    Raises ModelError for a setting without `=`.
    """
    values: dict[str, str] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name.strip():
            raise ModelError(f"--set {setting!r} is not NAME=VALUE; write for example --set num_hidden_layers=4")
        values[name.strip()] = value.strip()
    return values


def changed_fields(config: PreTrainedConfig, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments that make `config`'s class with `overrides` applied.

    Text gets the type of the value that `config` has now; dotted names reach into nested configurations. Special token
    ids outside a smaller vocabulary become its last id. Lists with an entry for each layer are left to the
    configuration's class when the number of layers changes.

    Raises ModelError for a name that `config` does not have (with close matches) or a value of another type.
    """
    fields: dict[str, Any] = {}
    nested: dict[str, dict[str, Any]] = {}
    for dotted, value in overrides.items():
        head, _, rest = dotted.partition(".")
        name = config.attribute_map.get(head, head)
        _refuse_unknown(config, head, dotted)
        if rest:
            nested.setdefault(name, {})[rest] = value
        else:
            fields[name] = typed(value, _present(config, name), f"{dotted} of {config.model_type}")
    for name, inner in nested.items():
        fields[name] = _changed_inside(config, name, inner)
    return _fields_per_layer(config, fields) | _ids_inside(config, fields) | fields


def _changed_inside(config: PreTrainedConfig, name: str, inner: dict[str, Any]) -> dict[str, Any]:
    """Return a nested configuration or dictionary with `inner` applied, as a dictionary."""
    present = getattr(config, name)
    if isinstance(present, PreTrainedConfig):
        return present.to_diff_dict() | {"model_type": present.model_type} | changed_fields(present, inner)
    if not isinstance(present, dict):
        raise ModelError(
            f"{name} of {config.model_type} is {present!r}, so it has no {next(iter(inner))}; set {name} itself"
        )
    changed = json.loads(json.dumps(present))
    for dotted, value in inner.items():
        *path, last = dotted.split(".")
        holder = changed
        for step in path:
            holder = holder.get(step) if isinstance(holder, dict) else None
        if not isinstance(holder, dict) or last not in holder:
            names = ", ".join(holder) if isinstance(holder, dict) else "nothing"
            raise ModelError(f"{name} of {config.model_type} has no {dotted}; it holds {names}")
        holder[last] = typed(value, holder[last], f"{name}.{dotted} of {config.model_type}")
    return changed


def typed(value: Any, present: Any, what: str) -> Any:
    """Return `value` as the type of `present`; text is parsed, `none` is None.

    Raises ModelError if it has no value of that type.
    """
    if isinstance(value, str) and value.lower() in ("none", "null"):
        return None
    if not isinstance(value, str) or isinstance(present, str):
        return value
    try:
        if isinstance(present, bool):
            return {"true": True, "1": True, "false": False, "0": False}[value.lower()]
        if isinstance(present, int):
            return int(value)
        if isinstance(present, float):
            return float(value)
        if isinstance(present, (list, tuple, dict)):
            return json.loads(value if value[:1] in "[{" else f"[{value}]")
    except (KeyError, ValueError):
        raise ModelError(f"{what} is {present!r} by default, of type {type(present).__name__}; got {value!r}") from None
    try:
        return json.loads(value)
    except ValueError:
        return value


def _present(config: PreTrainedConfig, name: str) -> Any:
    """Return the present value, which sets the type of a new one."""
    return "" if name.endswith("_implementation") else getattr(config, name)


def _refuse_unknown(config: PreTrainedConfig, name: str, dotted: str) -> None:
    known = {*config.to_dict(), *config.attribute_map, *_ALWAYS_KNOWN}
    if name in known:
        return
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"it has {', '.join(sorted(known))}"
    raise ModelError(f"the configuration of {config.model_type} has no {dotted}; {hint}")


def _fields_per_layer(config: PreTrainedConfig, fields: Mapping[str, Any]) -> dict[str, None]:
    """Return None, which lets the class fill them in, for lists with an entry for each of the former layers."""
    count = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    if count not in fields:
        return {}
    entries = config.to_dict().items()
    former = getattr(config, count)
    return {
        name: None for name, value in entries if "layer" in name and isinstance(value, list) and len(value) == former
    }


def _ids_inside(config: PreTrainedConfig, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return new values for the special token ids that are outside a changed vocabulary."""
    size = fields.get("vocab_size")
    if not isinstance(size, int):
        return {}
    moved: dict[str, Any] = {}
    for name, value in config.to_dict().items():
        if not name.endswith("_token_id") or name in fields:
            continue
        if isinstance(value, int) and value >= size:
            moved[name] = size - 1
        elif isinstance(value, list):
            moved[name] = [min(token, size - 1) for token in value]
    return moved
