import time

import pandas as pd
import pytest
import torch

from effcnn_helpers.latency import ceilings, inference, ratios, time_interleaved, training_step
from effcnn_helpers.models import build_model


def test_variants_are_called_in_turn():
    order = []
    times = time_interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3)
    assert list(times["variant"]) == ["a", "b"] * 3
    timed = [name for before, name in zip([None, *order], order, strict=False) if before != name]
    assert timed == ["a", "b"] * (len(timed) // 2) and len(timed) >= 6


def test_times_are_milliseconds_and_threads_are_put_back():
    threads = torch.get_num_threads()
    times = time_interleaved({"sleep": lambda: time.sleep(0.02)}, rounds=3)
    assert times["ms"].between(20, 60).all()
    assert torch.get_num_threads() == threads


def test_ratio_is_the_median_of_the_rounds_own_ratios():
    times = pd.DataFrame({"variant": ["slow", "base"] * 3, "ms": [20, 10, 90, 30, 44, 11]})
    summary = ratios(times, to="base")
    assert list(summary.index) == ["slow", "base"]
    assert summary.loc["slow"].to_dict() == {"ms": 44, "lower": 32, "upper": 67, "ratio": 3}
    with pytest.raises(KeyError, match="other"):
        ratios(times, to="other")


def test_inference_and_training_step_do_what_they_time():
    network = build_model("1.5k-dw")
    x, y = torch.randn(4, 1, 28, 28), torch.arange(4)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    training_step(network, x, y)()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert all(map(torch.equal, before, network.parameters()))
    logits = inference(network, x)()
    assert logits.shape == (4, 10) and not network.training and not logits.requires_grad


def test_ceilings_are_the_rates_of_the_fastest_call(monkeypatch):
    ticks = {"product": 4.0, "convolution": 604.0, "copy": 2.0}  # milliseconds
    rows = [{"variant": name, "ms": ms + late} for late in (0, 9) for name, ms in ticks.items()]
    monkeypatch.setattr("effcnn_helpers.latency.time_interleaved", lambda *arguments, **options: pd.DataFrame(rows))
    # 1,208 million operations in 604 ms beat 2 * 100^3 in 4 ms; 1,000 numbers of 4 bytes are read and written in 2 ms.
    assert ceilings(side=100, numbers=1_000) == pytest.approx((2.0, 0.004), rel=1e-3)
