"""PyTorch modules, in process. Needs the test-torch extra."""

from __future__ import annotations

import pytest

from foretell import api
from foretell.errors import FormatError, UsageError
from foretell.graph.cost import cost

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")


def network():
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.BatchNorm2d(16), torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(16, 10),
    )  # fmt: skip


def test_a_module_and_an_exported_program_read():
    net = network()
    args = (torch.zeros(2, 3, 32, 32),)
    graph = api.read_model(net, args=args)
    assert net.training  # as it was
    assert cost(graph).total_macs == 2 * (32 * 32 * 16 * 27 + 160)
    program = torch.export.export(net.eval(), args)
    assert cost(api.read_model(program)).total_macs == cost(graph).total_macs
    assert api.predict(graph).latency_s.value > 0


def test_what_cannot_be_exported_says_why():
    class Odd(torch.nn.Module):
        def forward(self, x):
            raise RuntimeError("not today")

    with pytest.raises(FormatError, match="torch cannot export"):
        api.read_model(Odd(), args=(torch.zeros(3),))
    with pytest.raises(UsageError, match="example inputs"):
        api.read_model(network())


def test_pickles_are_refused(tmp_path):
    path = tmp_path / "net.pt2"
    torch.save(network().state_dict(), path)
    with pytest.raises(FormatError, match="pickles"):
        api.read_model(path)
