"""Inception-v3 (Szegedy et al. 2015, arXiv 1512.00567) up to its last pooling, under the names of the
published state dicts.

Two sets of weights share these names: torchvision's (1,000 classes) and the one that FIDs are measured with,
converted from the TensorFlow release of 2015-12-05 (1,008 classes). The second's poolings differ: padding
does not count, and the last block takes maxima.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEATURES = 2048
SIDE = 299


class BasicConv2d(nn.Module):
    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int],
        *,
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Branches(nn.Module):
    """A block: named convolutions, and how the pooled branch is pooled (`padded`: zeros at the rim count in a
    mean)."""

    def __init__(self, *, padded: bool, **convolutions: BasicConv2d):
        super().__init__()
        self.padded = padded
        for name, convolution in convolutions.items():
            self.add_module(name, convolution)

    def through(self, x: Tensor, *names: str) -> Tensor:
        for name in names:
            x = self.get_submodule(name)(x)
        return x

    def mean(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=self.padded)


class InceptionA(Branches):
    def __init__(self, inputs: int, pooled: int, *, padded: bool):
        super().__init__(
            padded=padded,
            branch1x1=BasicConv2d(inputs, 64, 1),
            branch5x5_1=BasicConv2d(inputs, 48, 1),
            branch5x5_2=BasicConv2d(48, 64, 5, padding=2),
            branch3x3dbl_1=BasicConv2d(inputs, 64, 1),
            branch3x3dbl_2=BasicConv2d(64, 96, 3, padding=1),
            branch3x3dbl_3=BasicConv2d(96, 96, 3, padding=1),
            branch_pool=BasicConv2d(inputs, pooled, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        fives, threes = ("branch5x5_1", "branch5x5_2"), ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")
        pooled = self.through(self.mean(x), "branch_pool")
        return torch.cat(
            [self.through(x, "branch1x1"), self.through(x, *fives), self.through(x, *threes), pooled], dim=1
        )


class InceptionB(Branches):
    def __init__(self, inputs: int):
        super().__init__(
            padded=True,
            branch3x3=BasicConv2d(inputs, 384, 3, stride=2),
            branch3x3dbl_1=BasicConv2d(inputs, 64, 1),
            branch3x3dbl_2=BasicConv2d(64, 96, 3, padding=1),
            branch3x3dbl_3=BasicConv2d(96, 96, 3, stride=2),
        )

    def forward(self, x: Tensor) -> Tensor:
        threes = self.through(x, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")
        return torch.cat([self.through(x, "branch3x3"), threes, F.max_pool2d(x, 3, stride=2)], dim=1)


class InceptionC(Branches):
    def __init__(self, inputs: int, inner: int, *, padded: bool):
        along, across = ((1, 7), (0, 3)), ((7, 1), (3, 0))

        def seven(sizes: tuple[int, int], shape: tuple[tuple[int, int], tuple[int, int]]) -> BasicConv2d:
            return BasicConv2d(*sizes, shape[0], padding=shape[1])

        super().__init__(
            padded=padded,
            branch1x1=BasicConv2d(inputs, 192, 1),
            branch7x7_1=BasicConv2d(inputs, inner, 1),
            branch7x7_2=seven((inner, inner), along),
            branch7x7_3=seven((inner, 192), across),
            branch7x7dbl_1=BasicConv2d(inputs, inner, 1),
            branch7x7dbl_2=seven((inner, inner), across),
            branch7x7dbl_3=seven((inner, inner), along),
            branch7x7dbl_4=seven((inner, inner), across),
            branch7x7dbl_5=seven((inner, 192), along),
            branch_pool=BasicConv2d(inputs, 192, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        sevens = self.through(x, *(f"branch7x7_{k}" for k in (1, 2, 3)))
        doubled = self.through(x, *(f"branch7x7dbl_{k}" for k in (1, 2, 3, 4, 5)))
        return torch.cat(
            [self.through(x, "branch1x1"), sevens, doubled, self.through(self.mean(x), "branch_pool")], dim=1
        )


class InceptionD(Branches):
    def __init__(self, inputs: int):
        super().__init__(
            padded=True,
            branch3x3_1=BasicConv2d(inputs, 192, 1),
            branch3x3_2=BasicConv2d(192, 320, 3, stride=2),
            branch7x7x3_1=BasicConv2d(inputs, 192, 1),
            branch7x7x3_2=BasicConv2d(192, 192, (1, 7), padding=(0, 3)),
            branch7x7x3_3=BasicConv2d(192, 192, (7, 1), padding=(3, 0)),
            branch7x7x3_4=BasicConv2d(192, 192, 3, stride=2),
        )

    def forward(self, x: Tensor) -> Tensor:
        threes = self.through(x, "branch3x3_1", "branch3x3_2")
        sevens = self.through(x, *(f"branch7x7x3_{k}" for k in (1, 2, 3, 4)))
        return torch.cat([threes, sevens, F.max_pool2d(x, 3, stride=2)], dim=1)


class InceptionE(Branches):
    def __init__(self, inputs: int, *, padded: bool, largest: bool):
        super().__init__(
            padded=padded,
            branch1x1=BasicConv2d(inputs, 320, 1),
            branch3x3_1=BasicConv2d(inputs, 384, 1),
            branch3x3_2a=BasicConv2d(384, 384, (1, 3), padding=(0, 1)),
            branch3x3_2b=BasicConv2d(384, 384, (3, 1), padding=(1, 0)),
            branch3x3dbl_1=BasicConv2d(inputs, 448, 1),
            branch3x3dbl_2=BasicConv2d(448, 384, 3, padding=1),
            branch3x3dbl_3a=BasicConv2d(384, 384, (1, 3), padding=(0, 1)),
            branch3x3dbl_3b=BasicConv2d(384, 384, (3, 1), padding=(1, 0)),
            branch_pool=BasicConv2d(inputs, 192, 1),
        )
        self.largest = largest

    def forward(self, x: Tensor) -> Tensor:
        three = self.through(x, "branch3x3_1")
        doubled = self.through(x, "branch3x3dbl_1", "branch3x3dbl_2")
        split = [self.through(three, f"branch3x3_2{side}") for side in "ab"] + [
            self.through(doubled, f"branch3x3dbl_3{side}") for side in "ab"
        ]
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.largest else self.mean(x)
        return torch.cat([self.through(x, "branch1x1"), *split, self.through(pooled, "branch_pool")], dim=1)


class InceptionV3(nn.Module):
    """`fid`: with the poolings of the weights that FIDs are measured with. The classifier's layers are left
    out."""

    def __init__(self, *, fid: bool):
        super().__init__()
        padded = not fid
        self.Conv2d_1a_3x3 = BasicConv2d(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = BasicConv2d(32, 32, 3)
        self.Conv2d_2b_3x3 = BasicConv2d(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = BasicConv2d(64, 80, 1)
        self.Conv2d_4a_3x3 = BasicConv2d(80, 192, 3)
        self.Mixed_5b = InceptionA(192, 32, padded=padded)
        self.Mixed_5c = InceptionA(256, 64, padded=padded)
        self.Mixed_5d = InceptionA(288, 64, padded=padded)
        self.Mixed_6a = InceptionB(288)
        self.Mixed_6b = InceptionC(768, 128, padded=padded)
        self.Mixed_6c = InceptionC(768, 160, padded=padded)
        self.Mixed_6d = InceptionC(768, 160, padded=padded)
        self.Mixed_6e = InceptionC(768, 192, padded=padded)
        self.Mixed_7a = InceptionD(768)
        self.Mixed_7b = InceptionE(1280, padded=padded, largest=False)
        self.Mixed_7c = InceptionE(2048, padded=padded, largest=fid)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, 3, 299, 299) in [-1, 1] -> (N, 2048)."""
        for name, block in self.named_children():
            x = block(x)
            if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
                x = F.max_pool2d(x, 3, stride=2)
        return x.mean(dim=(2, 3))
