"""A U-Net of a few channels in plain torch: skips across the whole depth, and no configuration."""

import torch
from torch import Tensor, nn


class Stage(nn.Sequential):
    """Two convolutions, each normalized over groups, with dropout of whole channels."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__(
            nn.Conv2d(inside, outside, 3, padding=1),
            nn.GroupNorm(4, outside),
            nn.SiLU(inplace=True),
            nn.Dropout2d(0.1),
            nn.Conv2d(outside, outside, 3, padding=1),
            nn.BatchNorm2d(outside),
            nn.ReLU(),
        )


class SmallUNet(nn.Module):
    """Three stages down, two up; each stage up is joined with the output of a stage down."""

    def __init__(self, channels: int = 8, classes: int = 5) -> None:
        super().__init__()
        self.first, self.second, self.lowest = Stage(1, channels), Stage(channels, 16), Stage(16, 32)
        self.up_second, self.up_first = (
            nn.ConvTranspose2d(32, 16, 2, 2),
            nn.ConvTranspose2d(16, channels, 2, 2),
        )
        self.join_second, self.join_first = Stage(32, 16), Stage(2 * channels, channels)
        self.pool, self.head = nn.MaxPool2d(2), nn.Conv2d(channels, classes, 1)

    def forward(self, image: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Map image [batch, 1, side, side] and target classes [batch, side, side] to a loss and class scores."""
        first = self.first(image)
        second = self.second(self.pool(first))
        lowest = self.lowest(self.pool(second))
        joined = self.join_second(torch.cat([self.up_second(lowest), second], 1))
        scores = self.head(self.join_first(torch.cat([self.up_first(joined), first], 1)))
        return {"loss": nn.functional.cross_entropy(scores, target), "logits": scores}


def small_unet(batch: int, side: int, seed: int) -> tuple[SmallUNet, dict[str, Tensor]]:
    """Build the network in training mode, and pictures of text whose classes are five steps of brightness."""
    from lowtide.rewriter.models.corpus import sample_bytes

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = SmallUNet()
    data = bytearray(sample_bytes(batch * side * side, seed))
    brightness = torch.frombuffer(data, dtype=torch.uint8).view(batch, 1, side, side).float()
    target = (brightness[:, 0] / 26).long().clamp(0, 4)
    return model.train(), {"image": brightness / 64 - 1, "target": target}
