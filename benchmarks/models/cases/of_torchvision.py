"""Models of torchvision: classifiers, segmentation, detection, video and optical flow, on small pictures."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torchvision.models as models
from lowtide.rewriter.models.batches import pictures
from torch import nn

from ..case import Call, Case, Subject

_ROWS, _CLASSES = 2, 10
# The smaller ones of each kind of network.
_CLASSIFIERS = (
    *(
        "alexnet",
        "convnext_tiny",
        "densenet121",
        "efficientnet_b0",
        "googlenet",
        "inception_v3",
        "maxvit",
        "mnasnet0_5",
    ),
    *("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "regnet_x_400mf", "regnet_y_400mf", "resnet18"),
    *("resnet50", "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_0", "squeezenet1_1", "swin_t", "swin_v2_t"),
    *("vgg11", "vgg11_bn", "vit"),
)
_TOO_LARGE = ("101", "ssd300", "swin3d_b", "swin3d_s", "mvit_v2")


def cases() -> Iterator[Case]:
    """Yield all models, kind by kind."""
    for name in _CLASSIFIERS:
        yield Case(f"torchvision/{name}", "picture class", partial(_classifier, name))
    kinds = (
        (models.segmentation, "pixel class", _segmenter),
        (models.detection, "boxes", _detector),
        (models.video, "video class", _video),
    )
    for module, task, build in kinds:
        for name in models.list_models(module):
            if not any(mark in name for mark in _TOO_LARGE):
                yield Case(f"torchvision/{name}", task, partial(build, name))
    yield Case("torchvision/raft_small", "optical flow", _flow)


def _classifier(name: str) -> Subject:
    if name == "maxvit":
        model = models.MaxVit(
            (64, 64), 16, 2, [16, 32], [1, 1], 8, stochastic_depth_prob=0.1, attention_dropout=0.1, num_classes=_CLASSES
        )
    elif name == "vit":
        model = models.VisionTransformer(64, 8, 2, 4, 32, 64, 0.1, 0.1, _CLASSES)
    elif name in ("googlenet", "inception_v3"):
        model = models.get_model(name, weights=None, num_classes=_CLASSES, init_weights=True)
    else:
        model = models.get_model(name, weights=None, num_classes=_CLASSES)
    if isinstance(model, (models.VGG, models.AlexNet)):  # their last layers are made for larger pictures
        width = 512 if isinstance(model, models.VGG) else 256
        model.avgpool = nn.AdaptiveAvgPool2d(1)
        model.classifier = nn.Sequential(
            nn.Linear(width, 64), nn.ReLU(True), nn.Dropout(), nn.Linear(64, 64), nn.ReLU(True), nn.Linear(64, _CLASSES)
        )
    return _pictures(model, 160 if name == "inception_v3" else 64)


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
    frames, side = (16, 64) if name == "s3d" else (4, 32)
    if name.startswith("mvit"):
        model = _multiscale()
    else:
        model = models.get_model(name, weights=None, num_classes=_CLASSES)
    if name == "s3d":
        model.avgpool = nn.AdaptiveAvgPool3d(1)  # its own is made for larger pictures

    def batch(number: int) -> Call:
        film = pictures(_ROWS * frames, 3, side, side, number).view(_ROWS, frames, 3, side, side)
        return (film.transpose(1, 2).contiguous(),), {}

    return Subject(model, batch)


def _multiscale() -> nn.Module:
    """Build MViT with three small blocks; the second halves the resolution."""
    blocks = [
        models.video.mvit.MSBlockConfig(1, 16, 32, [3, 3, 3], [1, 2, 2], [], []),
        models.video.mvit.MSBlockConfig(2, 16, 32, [3, 3, 3], [1, 1, 1], [3, 3, 3], [1, 2, 2]),
        models.video.mvit.MSBlockConfig(2, 32, 32, [3, 3, 3], [1, 1, 1], [3, 3, 3], [1, 1, 1]),
    ]
    return models.video.MViT(
        (32, 32), 4, blocks, True, False, False, False, stochastic_depth_prob=0.1, num_classes=_CLASSES
    )


def _flow() -> Subject:
    model = models.optical_flow.raft_small(weights=None)

    def batch(number: int) -> Call:
        first, second = pictures(2 * _ROWS, 3, 128, 128, number).view(2, _ROWS, 3, 128, 128)
        return (first.clone(), second.clone()), {"num_flow_updates": 2}

    return Subject(model, batch)
