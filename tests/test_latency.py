import time
import timeit

import pandas as pd
import pytest
import torch

from effcnn_helpers.latency import ceilings, inference, ratios, time_interleaved, training_step
from effcnn_helpers.models import build_model


def test_variants_are_called_in_turn():
    order = []
    calls = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    times = time_interleaved(calls, rounds=3)
    assert list(times["variant"]) == ["a", "b"] * 3
    assert order == ["a", "a", "a", "b", "b", "b"] * 3, "twice to warm up, once against the clock"


def test_times_are_milliseconds_of_one_call(monkeypatch):
    """By a clock that a busy machine does not delay."""
    clock = iter([1.0, 1.025, 7.0, 7.5])
    timer = timeit.Timer
    monkeypatch.setattr(timeit, "timeit", lambda call, number: timer(
        call, timer=lambda: next(clock)).timeit(number))
    times = time_interleaved({"a": lambda: None}, rounds=2)
    assert times["ms"].to_list() == pytest.approx([25, 500])


def test_a_call_that_sleeps_takes_at_least_as_long():
    times = time_interleaved({"sleep": lambda: time.sleep(0.02)}, rounds=1)
    assert times["ms"].min() >= 20


def test_calls_have_the_threads_that_are_asked_for_and_they_are_put_back():
    before, seen = torch.get_num_threads(), []
    time_interleaved({"a": lambda: seen.append(torch.get_num_threads())}, rounds=1,
                     threads=before + 1)
    assert set(seen) == {before + 1} and torch.get_num_threads() == before
    with pytest.raises(ZeroDivisionError):
        time_interleaved({"a": lambda: 1 / 0}, threads=before + 1)
    assert torch.get_num_threads() == before


def test_a_warm_up_of_its_own_takes_the_place_of_two_calls():
    order = []
    time_interleaved({"a": lambda: order.append("a")}, rounds=2,
                     warm_up=lambda name: order.append(f"warm {name}"))
    assert order == ["warm a", "a"] * 2


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
    monkeypatch.setattr("effcnn_helpers.latency.time_interleaved",
                        lambda *arguments, **options: pd.DataFrame(rows))
    # 1,208 million operations in 604 ms beat 2 * 100^3 in 4 ms; 1,000 numbers of 4 bytes are read
    # and written in 2 ms.
    assert ceilings(side=100, numbers=1_000) == pytest.approx((2.0, 0.004), rel=1e-3)
