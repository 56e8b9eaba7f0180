"""VGG16 of torchvision on slices: thirteen convolutions with pools, three dense layers; one logit per class.

Belongs here: the network, and weights that it may begin with. Does not belong here: training, relevance rules.

Source: Simonyan and Zisserman 2015, arXiv 1409.1556, configuration D, as torchvision has it
(`torchvision.models.vgg16`): names, sizes and the drawing of weights are the same, so that its state dicts fit. Images
are taken as they are, in [0, 1], without ImageNet's mean and standard deviation, as in the study of tumours that this
network is here for (LRP-model-investigation, `relevance_studies.md`, section 1).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

__all__ = ["VGG16"]

Shape = tuple[int, int, int]
HALVINGS = 5  # pools
POSITIONS = 7  # per axis, what the first dense layer sees


class VGG16(nn.Module):
    """Logits of classes from one slice (x, y, 1), which is given to the three colour channels alike.

    Parameters
    ----------
    shape
        Grid of the images, (x, y, 1) with at least 32 pixels along both axes. Any such grid will do later.
    contrasts, covariates
        1 and 0.
    classes
        Outputs.
    dropout
        Share dropped behind each of the first two dense layers.
    width
        Channels and units in units of the published ones, at least 1 of each. A VGG16 with width 1 has 134 million
        weights; a narrow one is for trials without a GPU. Its dense weights are drawn larger by 1 / sqrt(width), so
        that signals stay as large although each unit has fewer inputs.
    weights
        A state dict of a VGG16 (`.pth`, from torchvision or trained elsewhere). The last layer is taken from it where
        it has as many outputs as there are classes, else drawn. None: all are drawn.

    Raises
    ------
    ValueError
        If an option or the shape has no meaning, or the file holds no weights for this network.
    """

    attention = None  # one path, nothing to weigh

    def __init__(
        self,
        shape: Shape,
        contrasts: int = 1,
        covariates: int = 0,
        *,
        classes: int,
        dropout: float = 0.5,
        width: float = 1.0,
        weights: str | Path | None = None,
    ) -> None:
        super().__init__()
        if contrasts != 1 or covariates:
            raise ValueError(f"vgg16: takes one contrast and no covariates, not {contrasts} and {covariates}")
        if len(shape) != 3 or shape[2] != 1 or min(shape[:2]) < 2**HALVINGS:
            shown = "x".join(map(str, shape))
            raise ValueError(f"vgg16: needs slices (x, y, 1) of at least 32x32 pixels, not {shown}; prepare them so")
        if classes < 2 or not 0 <= dropout < 1 or not 0 < width <= 1:
            raise ValueError("vgg16: at least 2 classes, dropout in [0, 1) and width in (0, 1]")
        self.shape: Shape = (int(shape[0]), int(shape[1]), int(shape[2]))
        self.classes = classes
        plan = [each if isinstance(each, str) else _scaled(each, width) for each in cfgs["D"]]
        last, hidden = _scaled(512, width), _scaled(4096, width)
        self.features = make_layers(plan)
        self.avgpool = nn.AdaptiveAvgPool2d(POSITIONS)
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(
            nn.Linear(last * POSITIONS**2, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, classes),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01 / width**0.5)
                nn.init.zeros_(module.bias)
        if weights is not None:
            self._begin_with(Path(weights))

    def _begin_with(self, path: Path) -> None:
        """Take weights from a file. The last layer is left as drawn where the file has other classes."""
        given, own = _read(path), self.state_dict()
        if set(given) != set(own):
            odd = min(set(given) ^ set(own))
            raise ValueError(f"{path}: not the weights of a VGG16 ({odd} is {_where(odd in given)})")
        for name, value in own.items():
            if given[name].shape == value.shape:
                continue
            if not name.startswith("classifier.6.") or given[name].shape[1:] != value.shape[1:]:
                raise ValueError(
                    f"{path}: {name} has shape {tuple(given[name].shape)}, this network {tuple(value.shape)}; "
                    "take weights of the same width"
                )
            del given[name]
        self.load_state_dict(given, strict=False)

    def forward(self, images: Tensor, covariates: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, 1, X, Y, 1); covariates (B, 0) are there as for every network."""
        if images.ndim != 5 or images.shape[1] != 1 or images.shape[4] != 1:
            raise ValueError(f"vgg16: images must be (batch, 1, x, y, 1), not {tuple(images.shape)}")
        colours = images.squeeze(-1).expand(-1, 3, -1, -1)
        return self.classifier(self.flatten(self.avgpool(self.features(colours))))


def _scaled(count: int, width: float) -> int:
    return max(1, round(count * width))


def _where(in_file: bool) -> str:
    return "in it, and in no VGG16" if in_file else "not in it"


def _read(path: Path) -> dict[str, Tensor]:
    """A file's tensors by name. Raises ValueError where it is missing, damaged, or something else."""
    if not path.is_file():
        raise ValueError(
            f"{path}: no such file; model.options.weights names a state dict of torchvision's vgg16 (.pth)"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, zipfile and pickle each raise their own for a damaged file
        raise ValueError(f"{path}: damaged, or more than a state dict of tensors; save model.state_dict()") from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path}: no state dict of tensors; save model.state_dict()")
    return content
