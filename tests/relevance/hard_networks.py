"""Networks as after training, and worse, and what may be asked of every explanation."""

import torch


def randomise(model, seed=0, last_scale=0.0):
    """Batch norms with means, variances and scales of both signs, each one's last scale as given; float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor, mean, sd):
        tensor.copy_(mean + sd * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype))

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                normal(module.running_mean, 0, 0.3)
                module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))
                normal(module.weight, 0.4, 0.7)
                normal(module.bias, 0, 0.3)
                module.weight[-1] = last_scale
    return model.double().eval()


def snapshot(model):
    """All that must be as it was: bits, identities, flags and hooks."""
    parts = {}
    for name, module in model.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        parts[name] = (id(module), module.training, tuple(len(h) for h in hooks), list(module._modules))
        for key, tensor in {**module._parameters, **module._buffers}.items():
            bits = None if tensor is None else tensor.detach().numpy().tobytes()
            flag = None if tensor is None else (tensor.requires_grad, tensor.dtype, tensor.grad)
            parts[f"{name}.{key}"] = (id(tensor), bits, flag)
    return parts


def account(explanation):
    """Relevance that the ledger itemises as lost."""
    return explanation.ledger.select("bias", "stabiliser", "dead", "clamped").sum().sum_horizontal().item()
