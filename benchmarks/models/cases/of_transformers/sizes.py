"""Makes small configurations of transformers' models from their defaults, by the names of their fields."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedConfig

_VOCABULARY = 160
_FIRST_FREE_ID = 110  # ids from here on are for special tokens that lie beyond the small vocabulary
_WIDTHS = re.compile(
    r"hidden|embed|embd|dim|d_model|d_ff|d_kv|d_inner|d_head|d_rel|n_inner|width|channel|intermediate|rank|ffn|units"
    r"|filters|proj|feedforward|size_per_layer|_sizes?$|features?_size|descriptor"
)
_NO_WIDTHS = re.compile(
    r"num_|vocab|position|patch_size|patch_stride|image|kernel|window|stride|length|token|_ids?$|_layers?$|block_size"
    r"|batch|max|min_|ratio|factor|expert_capacity|bucket|codebook_size|type|group_size|chunk|rope_(?!head)|input_size|audio_chan"
    r"|resolution|crop|grid|n_mel|mel_dim|mel_bins|merge|label|pool|class|spatial|padding|layers_indices|layer_inde|dilation"
)
_LAYERS = re.compile(
    r"^(num|n|encoder|decoder)?_?(hidden_)?(encoder_|decoder_|speech_encoder_|t2u_encoder_|t2u_decoder_|conf_)?"
    r"(hidden_)?(num_hidden_)?(layers?|blocks)$|^depth$|_num_layers$|_num_hidden_layers$|^num_\w+_(layers|blocks)$"
)
_STAGES = re.compile(
    r"^(depths|\w*num_blocks\w*|num_block_repeats|stage_numb_of_layers|blocks_per_stage|layer_depths)$"
)
_IDS = re.compile(r"_token_ids?$|_token_index$|_token_idx$|^\w*_ids?$|_index$")
_DROPOUT = re.compile(r"dropout|pdrop|dropout_prob|drop_path_rate$|dropout_rate$")
_MOST = {
    "max_position_embeddings": 128,
    "n_positions": 128,
    "n_ctx": 128,
    "max_source_positions": 32,
    "max_target_positions": 64,
    "max_seq_len": 128,
    "sliding_window": 8,
    "sliding_window_size": 8,
    "local_attention": 8,
    "chunk_size": 8,
    "mamba_chunk_size": 8,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "num_queries": 12,
    "num_object_queries": 12,
    "num_denoising": 10,
    "train_num_points": 64,
    "mask_time_length": 2,
    "num_frames": 4,
    "context_length": 64,
    "mm_tokens_per_image": 16,
    "num_kv_shared_layers": 0,
    "max_window_layers": 1,
}


@dataclass(frozen=True)
class Size:
    """The target size of a configuration.

    divisor: of all widths.
    images: the least side of pictures in patches; None leaves pictures and patches unchanged.
    layers: how many of them, where all are alike.
    has_dropout: whether to set dropout of 0 to 0.1.
    """

    divisor: int = 16
    images: int | None = 8
    layers: int = 2
    has_dropout: bool = True


@dataclass
class Shrinking:
    """Shrinks one configuration with all inside it; equal special ids stay equal."""

    size: Size
    _new_ids: dict[int, int] = field(default_factory=dict)
    _new_widths: dict[int, int] = field(default_factory=dict)

    def shrink(self, config: PreTrainedConfig, overrides: dict[str, Any] | None = None) -> PreTrainedConfig:
        """Return a new configuration of the same class. overrides: fields by name that are used instead."""
        self._new_widths = _widths_of_heads(config, self.size.divisor)
        small = self._shrink(config, overrides)
        for part in parts_of(small):
            _fit_rotation(part)
        return small

    def _shrink(self, config: PreTrainedConfig, overrides: dict[str, Any] | None) -> PreTrainedConfig:
        overrides = overrides or {}
        fresh = type(config)()
        kwargs: dict[str, Any] = {}
        chosen = _chosen_layers(config, self.size.layers)
        for setting in dataclasses.fields(config):
            if not setting.init or setting.name in _PASSED_OVER:
                continue
            value = _read(config, setting.name)
            inner = overrides.get(setting.name)
            if isinstance(value, PreTrainedConfig):
                kwargs[setting.name] = self._shrink(value, inner)
            elif inner is not None:
                kwargs[setting.name] = inner
            elif value is not None and (
                setting.default is not None or value != _read(fresh, setting.name) or chosen.has(value)
            ):
                kwargs[setting.name] = self._small(setting.name, value, config, chosen)
        kwargs |= _features(config, chosen)
        kwargs |= {name: value for name, value in overrides.items() if name not in kwargs}
        return type(config)(**kwargs)

    def _small(self, name: str, value: Any, config: PreTrainedConfig, chosen: _Layers) -> Any:
        if isinstance(value, bool) or value is None or isinstance(value, str):
            return value
        if isinstance(value, float):
            is_off = value == 0 and self.size.has_dropout and _DROPOUT.search(name) and "layerdrop" not in name
            return 0.1 if is_off else value
        if isinstance(value, int):
            return self._small_number(name, value, config, chosen)
        if isinstance(value, (list, tuple)):
            return type(value)(self._small_list(name, list(value), config, chosen))
        if isinstance(value, dict) and name.startswith("rope"):
            return _small_rope(value, self.size.divisor)
        return value

    def _small_number(self, name: str, value: int, config: PreTrainedConfig, chosen: _Layers) -> int:
        if name in _MOST:
            return min(value, _MOST[name])
        if name.endswith("vocab_size"):
            return min(value, _VOCABULARY)
        if _IDS.search(name):
            return self._small_id(value)
        if name == "num_hidden_layers" and chosen.indices:
            return max(len(chosen.indices), min(value, chosen.least))
        if _LAYERS.search(name):
            return min(value, max(self.size.layers, chosen.least))
        is_picture = name == "input_size" and isinstance(_read(config, "patch_size"), int)
        if self.size.images and (is_picture or name in ("image_size", "patch_size")):
            patch = _read(config, "patch_size")
            patch = min(patch, 8) if isinstance(patch, int) else 8
            return patch if name == "patch_size" else self.size.images * max(patch, 8)
        return self._small_width(name, value)

    def _small_width(self, name: str, value: int, divisor: int | None = None) -> int:
        if value < 32 or not _WIDTHS.search(name) or _NO_WIDTHS.search(name):
            return value
        if divisor is None and value in self._new_widths:
            return self._new_widths[value]
        return max(value // (divisor or self.size.divisor), 4)

    def _small_list(self, name: str, value: list[Any], config: PreTrainedConfig, chosen: _Layers) -> list[Any]:
        if chosen.has(value):
            return [value[index] for index in chosen.indices]
        if not value or not all(isinstance(part, int) and not isinstance(part, bool) for part in value):
            return value
        if _STAGES.search(name):
            return [min(part, 2 if index == 0 else 1) for index, part in enumerate(value)]
        if _IDS.search(name) and "token" in name:
            return [self._small_id(part) for part in value]
        if name in ("image_size", "patch_size") and self.size.images:
            return [self._small_number(name, part, config, chosen) for part in value]
        if _is_of_layers(name, value, chosen):
            return chosen.spread(value)
        smallest = min(value)
        divisor = max(1, min(self.size.divisor, smallest // 8))
        return [self._small_width(name, part, divisor) for part in value] if smallest >= 16 else value

    def _small_id(self, value: int) -> int:
        if value < _FIRST_FREE_ID:
            return value
        return self._new_ids.setdefault(value, _FIRST_FREE_ID + len(self._new_ids))


_PASSED_OVER = frozenset(
    (
        "transformers_version",
        "architectures",
        "id2label",
        "label2id",
        "dtype",
        "torch_dtype",
        "_out_features",
        "_out_indices",
    )
)


@dataclass(frozen=True)
class _Layers:
    """The layers of a configuration that are kept.

    count: how many it has.
    indices: those that show each kind of layer once.
    least: how many are needed to take features at as many places as before.
    """

    count: int
    indices: tuple[int, ...]
    least: int

    def has(self, value: Any) -> bool:
        """Return whether a value is a list with one entry for each layer."""
        return bool(self.indices) and isinstance(value, (list, tuple)) and len(value) == self.count > 4

    def spread(self, places: list[int]) -> list[int]:
        """Map numbers of layers to the range of those kept, in the same order."""
        kept = max(len(self.indices), self.least)
        last = kept if max(places) >= self.count else kept - 1
        first = max(0, last - len(places) + 1)
        return sorted({min(last, first + index) for index in range(len(places))})


def _chosen_layers(config: PreTrainedConfig, layers: int) -> _Layers:
    count = _read(config, "num_hidden_layers") or _read(config, "depth") or _read(config, "num_layers") or 0
    if not isinstance(count, int) or count < 1:
        return _Layers(0, (), 0)
    values = {setting.name: _read(config, setting.name) for setting in dataclasses.fields(config)}
    by_layer = [v for v in values.values() if isinstance(v, (list, tuple)) and len(v) == count > 4]
    first: dict[tuple[int, str], int] = {}
    for number, kinds in enumerate(by_layer):
        for index, kind in enumerate(kinds):
            first.setdefault((number, str(kind)), index)
    indices = sorted(set(first.values()))[:4] if len(set(first.values())) <= 6 else [0, count - 1]
    indices += [index for index in range(count) if index not in indices][: max(0, layers - len(indices))]
    places = [len(v) for name, v in values.items() if isinstance(v, (list, tuple)) and _PLACES.search(name)]
    places.append(len(_read(config, "out_features") or ()))
    return _Layers(count, tuple(sorted(indices)), max([layers, *(n for n in places if n <= 6)]))


_PLACES = re.compile(
    r"out_indices|indexes$|indices$|idxs$|_indexes_|extract_layers|reassemble_layers|cross_attention_layers$|global_attention_blocks"
)


def _is_of_layers(name: str, value: list[int], chosen: _Layers) -> bool:
    return bool(_PLACES.search(name)) and chosen.count > 0 and max(value) <= chosen.count and min(value) >= 0


def _small_rope(value: dict[str, Any], divisor: int) -> dict[str, Any]:
    small = {name: _small_rope(part, divisor) if isinstance(part, dict) else part for name, part in value.items()}
    if "original_max_position_embeddings" in small:
        small["original_max_position_embeddings"] = 64
    return small


def parts_of(config: PreTrainedConfig) -> list[Any]:
    """Return a configuration and those inside it, outermost first."""
    parts, waiting = [], [config]
    while waiting:
        part = waiting.pop(0)
        parts.append(part)
        waiting += [value for value in vars(part).values() if isinstance(value, PreTrainedConfig)]
    return parts


def _widths_of_heads(config: PreTrainedConfig, divisor: int) -> dict[int, int]:
    """Return new widths of hidden states, each a multiple of twice its heads; fields of equal width follow."""
    heads: dict[int, set[int]] = {}
    for part in parts_of(config):
        count = next((n for n in (_read(part, name) for name in _HEADS) if isinstance(n, int) and n > 0), None)
        for name in ("hidden_size", "d_model", "embed_dim", "n_embd", "dim"):
            width = _read(part, name)
            if isinstance(width, int) and count and width % count == 0 and width >= 32:
                heads.setdefault(width, set()).add(count)
    steps = {width: 2 * math.lcm(*counts) for width, counts in heads.items()}
    return {width: max(1, round(width / divisor / step)) * step for width, step in steps.items() if step <= width}


_HEADS = ("num_attention_heads", "num_heads", "encoder_attention_heads", "attention_heads", "n_head", "n_heads")


def _fit_rotation(config: Any) -> None:
    """Make the sections of a rotation over several axes fill half of a head."""
    rope = _read(config, "rope_parameters")
    width, heads = _read(config, "hidden_size"), _read(config, "num_attention_heads")
    if not isinstance(rope, dict) or not width or not heads:
        return
    for part in (rope, *(inner for inner in rope.values() if isinstance(inner, dict))):
        sections = part.get("mrope_section")
        if sections:
            head = _read(config, "head_dim") or width // heads
            half = int(head * (part.get("partial_rotary_factor") or 1.0)) // 2
            others = [max(1, section * half // sum(sections)) for section in sections[1:]]
            part["mrope_section"] = [half - sum(others), *others]


def _features(config: PreTrainedConfig, chosen: _Layers) -> dict[str, Any]:
    """Return the stages whose features a backbone returns: the same if they exist, otherwise as many as are left."""
    names = _read(config, "out_features")
    if not names or not hasattr(config, "stage_names"):
        return {}
    if not chosen.count or not all(re.fullmatch(r"stage\d+", name) for name in names):
        return {"out_features": list(names)}
    kept = max(len(chosen.indices), chosen.least)
    return {"out_features": [f"stage{number}" for number in range(max(1, kept - len(names) + 1), kept + 1)]}


def _read(config: PreTrainedConfig, name: str) -> Any:
    """Return a field's value; None if it does not exist, or differs from layer to layer."""
    try:
        return getattr(config, name, None)
    except Exception:  # attributes per layer cannot be read as one
        return None
