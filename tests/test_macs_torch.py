"""MACs against torch's FlopCounterMode, on zoo networks that timm rebuilds. Needs the test-torch extra."""

from __future__ import annotations

import sys
import types

import pytest

from foretell.graph.cost import cost

pytest.importorskip("torch")
# torchvision's wheel is linked to CUDA: beside a CPU build of torch its fake kernels have no operators to describe.
sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("torchvision._meta_registrations"))
pytest.importorskip("timm")

TIMM = (
    "convnext_tiny", "cspdarknet53", "deit_base_patch16_224", "densenet121", "dla34", "efficientformerv2_s0",
    "efficientnet_b0", "efficientnetv2_rw_t", "fastvit_t8", "levit_128", "maxvit_tiny_tf_224", "mixer_s32_224",
    "mobilenetv2_100", "mobilenetv3_large_100", "mobilenetv3_small_100", "mobilenetv4_conv_small", "mobileone_s0",
    "nfnet_l0", "poolformer_s12", "repvgg_a0", "resnet18", "resnet50", "vit_small_patch16_224", "vit_tiny_patch16_224",
)  # fmt: skip


@pytest.mark.parametrize("name", TIMM)
def test_macs_equal_torch(zoo, name):
    import timm
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    graph = zoo[name]
    shape = graph.tensors[graph.inputs[0]].shape
    net = timm.create_model(name, pretrained=False, exportable=True).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.zeros(shape))
    assert cost(graph).total_macs == pytest.approx(counter.get_total_flops() / 2, rel=0.005)
