"""GAMER-MRIL: one DenseNet encoder per contrast, and gated attention over the contrasts.

Belongs here: the network and the small modules it is made of. Every activation, pool, product and sum is a
module of its own, called once per forward pass, so that relevance rules can be attached to it.
Does not belong here: losses, training, relevance rules.

Source: Lu et al. 2023, arXiv 2308.07611. What the paper leaves open is settled as follows: the encoder's head
is dense over all positions (`head="flatten"`) or over the spatial mean (`head="gap"`), bottleneck 4 x growth,
compression 0.5, first convolution with stride 1, no bias on convolutions, replicate padding on every 3x3x3.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["ContrastSum", "DenseEncoder", "GatedAttentionNet", "Product"]

Shape = tuple[int, int, int]


def _conv3(inputs: int, outputs: int) -> nn.Conv3d:
    """3x3x3, stride 1, without bias; replicate padding keeps a folded batch norm exact at the border."""
    return nn.Conv3d(inputs, outputs, 3, padding=1, padding_mode="replicate", bias=False)


class DenseLayer(nn.Module):
    """BN, ReLU, Conv 1x1x1, BN, ReLU, Conv 3x3x3; its `growth` new channels are put behind its input."""

    def __init__(self, inputs: int, growth: int, bottleneck: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            OrderedDict(
                norm1=nn.BatchNorm3d(inputs),
                relu1=nn.ReLU(),
                conv1=nn.Conv3d(inputs, bottleneck * growth, 1, bias=False),
                norm2=nn.BatchNorm3d(bottleneck * growth),
                relu2=nn.ReLU(),
                conv2=_conv3(bottleneck * growth, growth),
            )
        )

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([features, self.layers(features)], dim=1)


class DenseEncoder(nn.Module):
    """One contrast (B, 1, X, Y, Z) to an embedding (B, K)."""

    def __init__(
        self,
        shape: Shape,
        *,
        head: Literal["flatten", "gap"],
        init_features: int,
        growth: int,
        bottleneck: int,
        compression: float,
        blocks: Sequence[int],
        embedding: int,
    ) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv0=_conv3(1, init_features),
            norm0=nn.BatchNorm3d(init_features),
            relu0=nn.ReLU(),
            pool0=nn.MaxPool3d(3, stride=2, padding=1),
        )
        channels = init_features
        for block, size in enumerate(blocks, start=1):
            for layer in range(1, size + 1):
                layers[f"block{block}_layer{layer}"] = DenseLayer(channels, growth, bottleneck)
                channels += growth
            if block < len(blocks):
                kept = int(channels * compression)
                layers[f"transition{block}"] = nn.Sequential(
                    OrderedDict(
                        norm=nn.BatchNorm3d(channels),
                        relu=nn.ReLU(),
                        conv=nn.Conv3d(channels, kept, 1, bias=False),
                        pool=nn.AvgPool3d(2, stride=2),
                    )
                )
                channels = kept
        layers["norm_head"] = nn.BatchNorm3d(channels)
        layers["relu_head"] = nn.ReLU()
        positions = 1
        if head == "gap":
            layers["pool_head"] = nn.AdaptiveAvgPool3d(1)
        else:
            for size in output_shape(shape, len(blocks)):
                positions *= size
        layers["flatten"] = nn.Flatten()
        layers["embed"] = nn.Linear(channels * positions, embedding)
        self.layers = nn.Sequential(layers)

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image)


def output_shape(shape: Shape, blocks: int) -> Shape:
    """The grid after the first pool (rounded up) and `blocks - 1` transitions (rounded down)."""
    x, y, z = ((size + 1) // 2 // 2 ** (blocks - 1) for size in shape)
    return x, y, z


class Product(nn.Module):
    """signal * gate, elementwise, for two inputs of one shape."""

    def forward(self, signal: Tensor, gate: Tensor) -> Tensor:
        return signal * gate


class ContrastSum(nn.Module):
    """(B, C, K) to (B, K): the sum over contrasts."""

    def forward(self, weighted: Tensor) -> Tensor:
        return weighted.sum(dim=1)


class GatedAttentionNet(nn.Module):
    """Logit of a binary target from C contrasts and P covariates, with one attention weight per contrast.

    m_l = encoder_l(q_l); e_l = w' (tanh(U m_l) * sigmoid(V m_l)); a = softmax(e); n = sum_l a_l m_l;
    f = classifier([n, covariates]). U, V and w are shared by all contrasts.

    Parameters
    ----------
    shape
        Grid of the images, at least 15 voxels along each axis with four blocks.
    contrasts, covariates
        C and P.
    head
        `flatten`: the embedding sees every position of the last grid, and the model works on that one shape
        only. `gap`: it sees the spatial mean, and any shape will do.
    init_features, growth, bottleneck, compression, blocks, embedding, gate
        Channels of the first convolution, new channels per dense layer, channels between its two convolutions
        in units of `growth`, share of channels that a transition keeps, dense layers per block, K, and the
        width of U and V.

    Raises
    ------
    ValueError
        If an option has no meaning, or the grid is too small.
    """

    def __init__(
        self,
        shape: Shape,
        contrasts: int,
        covariates: int = 0,
        *,
        head: Literal["flatten", "gap"] = "flatten",
        init_features: int = 16,
        growth: int = 4,
        bottleneck: int = 4,
        compression: float = 0.5,
        blocks: Sequence[int] = (2, 2, 2, 2),
        embedding: int = 32,
        gate: int = 16,
    ) -> None:
        super().__init__()
        if head not in ("flatten", "gap"):
            raise ValueError(f"gated_attention: head must be 'flatten' or 'gap', not {head!r}")
        sizes = (contrasts, init_features, growth, bottleneck, embedding, gate, len(blocks), *blocks)
        if min(sizes) < 1 or covariates < 0:
            raise ValueError("gated_attention: contrasts, blocks and all widths must be at least 1")
        if not 0 < compression <= 1 or int(min(init_features, growth) * compression) < 1:
            raise ValueError(f"gated_attention: compression {compression} leaves no channels; raise it")
        if min(output_shape(shape, len(blocks))) < 1:
            raise ValueError(
                f"gated_attention: shape {tuple(shape)} is too small; every axis needs at least "
                f"{2 ** len(blocks) - 1} voxels with {len(blocks)} blocks"
            )
        self.shape: Shape = (int(shape[0]), int(shape[1]), int(shape[2]))
        self.head = head
        self.contrasts = contrasts
        self.covariates = covariates
        self.encoders = nn.ModuleList(
            DenseEncoder(
                self.shape,
                head=head,
                init_features=init_features,
                growth=growth,
                bottleneck=bottleneck,
                compression=compression,
                blocks=blocks,
                embedding=embedding,
            )
            for _ in range(contrasts)
        )
        self.signal = nn.Linear(embedding, gate)
        self.signal_tanh = nn.Tanh()
        self.gate = nn.Linear(embedding, gate)
        self.gate_sigmoid = nn.Sigmoid()
        self.gated = Product()
        self.score = nn.Linear(gate, 1)
        self.softmax = nn.Softmax(dim=1)
        self.weighted = Product()
        self.combine = ContrastSum()
        self.classifier = nn.Linear(embedding + covariates, 1)

    def embed(self, images: Tensor) -> Tensor:
        """Embeddings m (B, C, K) of images (B, C, X, Y, Z)."""
        if images.ndim != 5 or images.shape[1] != self.contrasts:
            raise ValueError(
                f"gated_attention: images must be (batch, {self.contrasts}, x, y, z), not {tuple(images.shape)}"
            )
        if self.head == "flatten" and tuple(images.shape[2:]) != self.shape:
            raise ValueError(
                f"gated_attention: built for shape {self.shape}, given {tuple(images.shape[2:])}; "
                "crop or pad the images, or build with head='gap'"
            )
        return torch.stack([encoder(images[:, i : i + 1]) for i, encoder in enumerate(self.encoders)], dim=1)

    def scores(self, embeddings: Tensor) -> Tensor:
        """Scores e (B, C) of embeddings (B, C, K): the attention before the softmax."""
        signal = self.signal_tanh(self.signal(embeddings))
        gate = self.gate_sigmoid(self.gate(embeddings))
        return self.score(self.gated(signal, gate)).squeeze(-1)

    def attention(self, images: Tensor) -> Tensor:
        """Attention weights (B, C), each row with sum 1, of images (B, C, X, Y, Z)."""
        return self.softmax(self.scores(self.embed(images)))

    def classify(self, embeddings: Tensor, scores: Tensor, covariates: Tensor) -> Tensor:
        """Logits (B,) of embeddings (B, C, K), scores (B, C) and covariates (B, P)."""
        gates = self.softmax(scores).unsqueeze(-1).expand_as(embeddings)
        combined = self.combine(self.weighted(embeddings, gates))
        return self.classifier(torch.cat([combined, covariates], dim=1)).squeeze(-1)

    def forward(self, images: Tensor, covariates: Tensor) -> Tensor:
        """Logits (B,) of images (B, C, X, Y, Z) and covariates (B, P)."""
        embeddings = self.embed(images)
        return self.classify(embeddings, self.scores(embeddings), covariates)
