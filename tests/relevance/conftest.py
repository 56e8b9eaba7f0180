"""Networks that several tests of relevance use."""

import pytest
import torch
from hard_networks import randomise

from relevance_assets.models.gated_attention import GatedAttentionNet


@pytest.fixture(params=["flatten", "gap"])
def network(request):
    torch.manual_seed(0)
    return randomise(GatedAttentionNet((16, 17, 16), 3, 1, head=request.param))
