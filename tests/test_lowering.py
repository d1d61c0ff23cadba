"""What a network is lowered to: few kinds of steps, that compute the same. More of it in test_plain_c."""

import torch
from torch import nn

from effcnn_helpers.batches import normalise
from effcnn_helpers.datasets import load_images, spec_of
from effcnn_helpers.lowering import lower, run
from effcnn_helpers.models import build_model
from effcnn_helpers.techniques import add_to_network


def test_steps_compute_what_the_network_computes_with_its_batchnorms_folded():
    torch.manual_seed(0)
    network = add_to_network(build_model("1.5k-dw"), ("blurpool",))
    x = load_images("mnist").test.x[:20]
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    network.train()(normalise(x, "mnist"))
    network.eval()
    with torch.inference_mode():
        steps = lower(network, spec_of("mnist"))
        torch.testing.assert_close(run(steps, x)[steps[-1].y].flatten(1), network(normalise(x, "mnist")),
                                   atol=1e-4, rtol=1e-4)
    assert {step.kind for step in steps} == {"input", "conv", "depthwise", "maxpool", "mean"}
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    blurs = 2
    assert sum(step.kind in ("conv", "depthwise") for step in steps) == len(layers) + blurs
    assert sum(step.relu for step in steps) == sum(isinstance(module, nn.ReLU) for module in network.modules())
