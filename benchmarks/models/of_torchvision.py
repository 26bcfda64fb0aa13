"""Models of torchvision: classifiers, segmentation, detection, video and optical flow, on small pictures."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torchvision.models as models
from lowtide.rewriter.batches import pictures
from torch import nn

from .case import Call, Case, Subject

_ROWS, _CLASSES = 2, 10
# The smaller ones of each kind of network.
_CLASSIFIERS = (
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3"),
    *("maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "regnet_x_400mf"),
    *("regnet_y_400mf", "resnet18", "resnet50", "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_0"),
    *("squeezenet1_1", "swin_t", "swin_v2_t", "vgg11", "vgg11_bn", "vit_b_32", "wide_resnet50_2"),
)
_SIDES = {"alexnet": 64, "inception_v3": 96, "maxvit_t": 224, "vit_b_32": 224}


def cases() -> Iterator[Case]:
    """All of them, kind by kind."""
    for name in _CLASSIFIERS:
        yield Case(f"torchvision/{name}", "picture class", partial(_classifier, name))
    for name in models.list_models(models.segmentation):
        if "101" not in name:
            yield Case(f"torchvision/{name}", "pixel class", partial(_segmenter, name))
    for name in models.list_models(models.detection):
        yield Case(f"torchvision/{name}", "boxes", partial(_detector, name))
    for name in models.list_models(models.video):
        if name not in ("swin3d_b", "swin3d_s"):
            yield Case(f"torchvision/{name}", "video class", partial(_video, name))
    yield Case("torchvision/raft_small", "optical flow", _flow)


def _classifier(name: str) -> Subject:
    side = _SIDES.get(name, 64)
    extra: dict[str, Any] = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    if name == "maxvit_t":
        extra = {"input_size": (64, 64), "partition_size": 2, "stem_channels": 16, "block_channels": [16, 32]}
        extra |= {"block_layers": [1, 1], "head_dim": 8, "stochastic_depth_prob": 0.1}
        side = 64
        return _pictures(models.MaxVit(num_classes=_CLASSES, **extra), side)
    if name == "vit_b_32":
        extra, side = {"image_size": 64, "dropout": 0.1, "attention_dropout": 0.1}, 64
    return _pictures(models.get_model(name, weights=None, num_classes=_CLASSES, **extra), side)


def _segmenter(name: str) -> Subject:
    model = models.get_model(name, weights=None, weights_backbone=None, num_classes=_CLASSES)
    return _pictures(model, 64)


def _pictures(model: nn.Module, side: int) -> Subject:
    return Subject(model, lambda number: ((pictures(_ROWS, 3, side, side, number),), {}))


def _detector(name: str) -> Subject:
    extra: dict[str, Any] = {"min_size": 64, "max_size": 96} if "ssd" not in name else {}
    if "rcnn" in name:
        extra |= {"rpn_pre_nms_top_n_train": 50, "rpn_post_nms_top_n_train": 20, "box_batch_size_per_image": 16}
    model = models.get_model(name, weights=None, weights_backbone=None, num_classes=_CLASSES, **extra)
    return Subject(model, partial(_detection_batch, 320 if "ssd" in name else 64, name))


def _detection_batch(side: int, name: str, number: int) -> Call:
    draw = torch.Generator().manual_seed(number)
    targets = []
    for _ in range(_ROWS):
        corner = torch.rand(2, 2, generator=draw) * side / 2
        boxes = torch.cat([corner, corner + side / 8 + torch.rand(2, 2, generator=draw) * side / 4], 1)
        target = {"boxes": boxes, "labels": torch.randint(1, _CLASSES, (2,), generator=draw)}
        if "mask" in name:
            target["masks"] = (torch.rand(2, side, side, generator=draw) > 0.5).to(torch.uint8)
        if "keypoint" in name:
            places = boxes[:, None, :2] + torch.rand(2, 17, 2, generator=draw) * side / 8
            target["keypoints"] = torch.cat([places, torch.ones(2, 17, 1)], -1)
            target["labels"] = torch.ones(2, dtype=torch.long)
        targets.append(target)
    images = pictures(_ROWS, 3, side, side, number)
    return ([image.clone() for image in images], targets), {}


def _video(name: str) -> Subject:
    extra: dict[str, Any] = {}
    frames, side = 4, 32
    if name == "s3d":
        frames, side = 16, 64
    if name.startswith("mvit"):
        frames, side = 16, 224
    model = models.get_model(name, weights=None, num_classes=_CLASSES, **extra)

    def batch(number: int) -> Call:
        film = pictures(_ROWS * frames, 3, side, side, number).view(_ROWS, frames, 3, side, side)
        return (film.transpose(1, 2).contiguous(),), {}

    return Subject(model, batch)


def _flow() -> Subject:
    model = models.optical_flow.raft_small(weights=None)

    def batch(number: int) -> Call:
        one, other = pictures(2 * _ROWS, 3, 128, 128, number).view(2, _ROWS, 3, 128, 128)
        return (one.clone(), other.clone()), {"num_flow_updates": 2}

    return Subject(model, batch)
