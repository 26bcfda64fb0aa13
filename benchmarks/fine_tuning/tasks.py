"""Small classification tasks on data that every machine has: digits, and docstrings of the standard library."""

from __future__ import annotations

import ast
import re
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from lowtide.rewriter.models.corpus import hashed
from torch import Tensor, nn

Data = Mapping[str, Tensor]
PACKAGES = ("asyncio", "email", "idlelib", "importlib", "logging", "multiprocessing", "tkinter", "unittest", "xml")
_LEAST_PACKAGES = 6
_LEAST_WORDS, _MOST_TEXTS = 6, 240  # words of a docstring; texts of a package, so that classes are of similar size
_TEST_SHARE = 5  # one in five is held out
_SEED = 0  # of the split into training and test data


@dataclass(frozen=True)
class Task:
    """A model of random weights, trained on `train` data and tested on `test` data that it never sees.

    build: takes the seed of the weights.
    train, test: tensors by argument of the model, samples first; "labels" are classes.
    epochs: how many with exact gradients, shared by all settings, and how many with each setting's.
    """

    name: str
    description: str
    build: Callable[[int], nn.Module]
    train: Data
    test: Data
    batch_size: int
    learning_rate: float
    epochs: tuple[int, int]

    def batches(self, seed: int) -> Iterator[dict[str, Tensor]]:
        """Yield one epoch of batches in an order by the seed, all of one shape; leftover samples are dropped."""
        order = torch.randperm(len(self.train["labels"]), generator=torch.Generator().manual_seed(seed))
        for chosen in order.split(self.batch_size):
            if len(chosen) == self.batch_size:
                yield {name: tensor[chosen] for name, tensor in self.train.items()}


def vit_of_digits(epochs: tuple[int, int] = (2, 5), layers: int = 4, width: int = 64) -> Task:
    """Build the task of a ViT over 16 patches of 2 × 2."""
    train, test = digits(1)

    def build(seed: int) -> nn.Module:
        config = transformers.ViTConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            intermediate_size=4 * width,
            image_size=8,
            patch_size=2,
            num_channels=1,
            num_labels=10,
        )
        return _built(transformers.ViTForImageClassification, config, seed)

    description = f"transformers' ViT, {layers} layers, d {width}, digits of 8 × 8 in patches of 2 × 2"
    return Task("vit", description, build, train, test, 32, 1e-3, epochs)


def resnet_of_digits(epochs: tuple[int, int] = (1, 2), activation: str = "relu") -> Task:
    """Build the task of a ResNet of basic blocks on digits enlarged four times, which its stem reduces."""
    train, test = digits(4)

    def build(seed: int) -> nn.Module:
        config = transformers.ResNetConfig(
            num_channels=1,
            embedding_size=16,
            hidden_sizes=[16, 32, 64],
            depths=[2, 2, 2],
            layer_type="basic",
            hidden_act=activation,
            num_labels=10,
        )
        return _built(transformers.ResNetForImageClassification, config, seed)

    name = "resnet" if activation == "relu" else f"resnet-{activation}"
    description = (
        f"transformers' ResNet, 6 basic blocks of 16, 32 and 64 channels, {activation}, digits enlarged to 32 × 32"
    )
    return Task(name, description, build, train, test, 32, 3e-4, epochs)


def bert_of_docstrings(
    epochs: tuple[int, int] = (1, 5), layers: int = 2, width: int = 64, tokens: int = 32, most: int = _MOST_TEXTS
) -> Task:
    """Build the task of a BERT that predicts the package of a docstring. most: docstrings of a package."""
    vocabulary = 2048
    train, test, names = docstrings(tokens, vocabulary, most)

    def build(seed: int) -> nn.Module:
        config = transformers.BertConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            intermediate_size=4 * width,
            vocab_size=vocabulary,
            max_position_embeddings=tokens,
            num_labels=len(names),
        )
        return _built(transformers.BertForSequenceClassification, config, seed)

    description = (
        f"transformers' BERT, {layers} layers, d {width}, {tokens} words of a docstring, {len(names)} packages"
    )
    return Task("bert", description, build, train, test, 32, 1e-3, epochs)


def _built(kind: Any, config: Any, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(config).train()


def digits(scale: int) -> tuple[Data, Data]:
    """Load scikit-learn's 1,797 digits: pixel_values float32 [samples, 1, 8 scale, 8 scale], labels int64 [samples].

    Raises SystemExit where scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise SystemExit(
            "the digits come with scikit-learn, which is not installed: pip install scikit-learn"
        ) from error
    pictures, labels = load_digits(return_X_y=True)
    pixels = (torch.tensor(pictures, dtype=torch.float32).view(-1, 1, 8, 8) - 8) / 8  # 0 to 16 as -1 to 1
    large = pixels if scale == 1 else nn.functional.interpolate(pixels, scale_factor=scale, mode="bilinear")
    return _split({"pixel_values": large, "labels": torch.tensor(labels).long()})


def docstrings(tokens: int, vocabulary: int, most: int) -> tuple[Data, Data, list[str]]:
    """Load docstrings of `PACKAGES`: input_ids int64 [samples, tokens], the package of each as label, names of classes.

    Words are numbered by hash, 1 to vocabulary - 1, with 0 after the last. No two samples have equal input_ids, so no
    test sample has been trained on. Docstrings that two packages share are left out. Python's versions differ.
    Raises SystemExit where fewer than 6 of the packages are installed.
    """
    texts_by_package = {name: _texts(name) for name in PACKAGES}
    names = [name for name, texts in texts_by_package.items() if texts]
    if len(names) < _LEAST_PACKAGES:
        raise SystemExit(
            f"of the standard library only {', '.join(names) or 'nothing'} is installed: 6 packages are needed"
        )
    owners: dict[tuple[int, ...], set[int]] = {}
    for label, name in enumerate(names):
        for words in texts_by_package[name]:
            ids = hashed(words[:tokens], vocabulary, frozenset({0}))
            owners.setdefault((*ids, *[0] * (tokens - len(ids))), set()).add(label)
    generator = torch.Generator().manual_seed(_SEED)
    chosen: list[tuple[tuple[int, ...], int]] = []
    for label in range(len(names)):
        own = [ids for ids, labels in owners.items() if labels == {label}]
        chosen += [(own[place], label) for place in torch.randperm(len(own), generator=generator)[:most].tolist()]
    ids, labels = zip(*chosen, strict=True)
    return *_split({"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)}), names


@cache
def _texts(package: str) -> tuple[Sequence[str], ...]:
    """Return the words and marks of each docstring of a package that is long enough, in the order of the sources."""
    texts = []
    folder = Path(sysconfig.get_paths()["stdlib"]) / package
    for file in sorted(folder.rglob("*.py")):
        if any("test" in part for part in file.relative_to(folder).parts[:-1]):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
                words = re.findall(r"\w+|[^\w\s]", (ast.get_docstring(node) or "").lower())
                if len(words) >= _LEAST_WORDS:
                    texts.append(words)
    return tuple(texts)


def _split(data: Data) -> tuple[Data, Data]:
    """Split the data into training and test data, always by the same draw."""
    order = torch.randperm(len(data["labels"]), generator=torch.Generator().manual_seed(_SEED))
    held_out = len(order) // _TEST_SHARE
    train, test = order[held_out:], order[:held_out]
    return {name: value[train] for name, value in data.items()}, {name: value[test] for name, value in data.items()}


TASKS: Mapping[str, Callable[[], Task]] = {
    "vit": vit_of_digits,
    "resnet": resnet_of_digits,
    "resnet-gelu": lambda: resnet_of_digits(activation="gelu"),
    "bert": bert_of_docstrings,
}
