"""Small networks, and what zennit 0.5.1 and captum 0.9.0 say of them.

Belongs here: networks that both can explain, and calls of either that leave nothing behind on the network. Does not
belong here: our own engine, and judgement of who is right (`test_witnesses.py`).
"""

import torch
import torchvision
from captum.attr import LRP
from captum.attr._utils.lrp_rules import EpsilonRule
from monai.networks.nets import DenseNet
from torch import nn
from zennit.attribution import Gradient
from zennit.canonizers import NamedMergeBatchNorm
from zennit.composites import LayerMapComposite, layer_map_base
from zennit.types import Linear

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def layers_of(dims):
    """Convolution, transposed convolution, batch norm, pools of a dimension, as torch names them."""
    names = ("Conv", "ConvTranspose", "BatchNorm", "MaxPool", "AvgPool", "AdaptiveAvgPool")
    return [getattr(nn, f"{name}{dims}d") for name in names]


def cnn(dims, *, norm=False, bias=True, transposed=False):
    """Convolutions with padding, stride and groups, both pools, two dense layers; 2 channels of 12 voxels a side."""
    conv, up, batch_norm, max_pool, avg_pool, adaptive = layers_of(dims)
    norms = [[batch_norm(width)] if norm else [] for width in (6, 8, 8)]
    third = up(8, 8, 3, stride=2, bias=bias) if transposed else conv(8, 8, 3, stride=2, padding=1, bias=bias)
    return nn.Sequential(
        *[conv(2, 6, 3, padding=1, bias=bias), *norms[0], nn.ReLU(), max_pool(2)],
        *[conv(6, 8, 3, padding=1, groups=2, bias=bias), *norms[1], nn.ReLU(), avg_pool(2)],
        *[third, *norms[2], nn.ReLU(), adaptive(1), nn.Flatten()],
        *[nn.Linear(8, 10, bias=bias), nn.ReLU(), nn.Linear(10, 3, bias=bias)],
    )


def vgg16():
    """torchvision's VGG16 for 32 x 32; its three dense layers narrowed from 4096 units to 32, for the memory's sake."""
    model = torchvision.models.vgg16(weights=None, num_classes=3)
    model.classifier[0], model.classifier[3] = nn.Linear(512 * 49, 32), nn.Linear(32, 32)
    model.classifier[6] = nn.Linear(32, 3)
    return model


def densenet():
    """MONAI's DenseNet with two blocks of two layers."""
    return DenseNet(3, 1, 3, init_features=8, growth_rate=4, block_config=(2, 2), bn_size=2)


def densenet_pairs(model):
    """The convolutions of a MONAI DenseNet that a batch norm follows: the stem's, and each dense layer's first."""
    names = [name for name, module in model.named_modules() if isinstance(module, NORMS)]
    inner = [name for name in names if name.endswith("layers.norm2")]
    return [(["features.conv0"], "features.norm0")] + [([n.replace("norm2", "conv1")], n) for n in inner]


def merge_densenet(model):
    return [NamedMergeBatchNorm(densenet_pairs(model))]


def ready(model, dtype=torch.float64, *, eps=None):
    """Weights and batch norms as after training, so that relevance reaches the input; in eval mode.

    `eps` for all batch norms: 0 is what zennit's merge is exact for.
    """
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, NORMS):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
                module.eps = module.eps if eps is None else eps
            elif getattr(module, "weight", None) is not None and module.weight.ndim > 1:
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    module.bias.normal_(0, 0.1)
    return model.to(dtype).eval()


def one_hot(model, x, index):
    """The logit of class `index` as relevance at the output."""
    with torch.no_grad():
        output = model(x)
    start = torch.zeros_like(output)
    start[:, index] = output[:, index]
    return start


def zennit_map(model, composite, x, start):
    """zennit's relevance of x for the relevance `start` at the output."""
    with Gradient(model=model, composite=composite) as attributor:
        return attributor(x.detach().clone(), start)[1].detach()


def everywhere(rule, canonizers=None, stabilizer=1e-6):
    """A zennit composite with one rule for every convolution and dense layer, and its usual ones for the rest."""
    return LayerMapComposite([*layer_map_base(stabilizer), (Linear, rule)], canonizers=canonizers)


def captum_map(model, rule, x, index):
    """captum's relevance of x for the logit of class `index`.

    captum deletes its rules with every call and knows no default for layers of other than two dimensions: every
    leaf gets one by hand, `rule()` where it has weights.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
            module.rule = rule()
        elif not list(module.children()) and not isinstance(module, nn.ReLU | nn.Dropout | nn.Tanh):
            module.rule = EpsilonRule()
    return LRP(model).attribute(x.detach().clone(), target=index).detach()
