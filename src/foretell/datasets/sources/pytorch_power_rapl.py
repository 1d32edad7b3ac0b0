"""Energy of single layers on two Intel CPUs (https://github.com/willowec/characterizing-pytorch-power)."""

from __future__ import annotations

from pathlib import Path

from foretell.datasets.rows import Imported, Source, joined, make
from foretell.datasets.sources.tables import read_table
from foretell.generate.builder import Builder
from foretell.graph.ir import Graph

SOURCE = Source(
    name="pytorch_power_rapl",
    title="PyTorch layers on two Intel CPUs: energy (RAPL) and time of 3,000 convolution, linear and pooling layers",
    citation="willowec, characterizing-pytorch-power",
    origin="github.com/willowec/characterizing-pytorch-power @4067417d41f23a685329988b9bc1dc85f2265e4c",
    licence="MIT",
    files=("layers.parquet",),
    rows=(5_500, 6_000),
    graphs="built",
    note="Forward passes; batches up to 2,048. Rows with an energy of zero or less (the counter wrapped round) are "
    "dropped. Convolutions without padding; pooling is taken to be of maxima.",
)
_DEVICES = {"broadwell-ep": "xeon-broadwell-ep", "raptorlake": "core-raptor-lake"}
_NUMBERS = ("batch_size", "in_chan", "out_chan", "side_len", "k_size", "stride", "in_size", "out_size", "k_side_length",
            "im_side_length")  # fmt: skip


def read(folder: Path) -> Imported:
    """Rows and codes from the source's folder. Raises FormatError if a file is missing or holds something else."""
    table = read_table(folder / "layers.parquet", ("cpu", "layer", *_NUMBERS, "fwd_energy_uJ", "fwd_time_us"))
    out = []
    codes: dict[str, str] = {}
    rows = [r for r in table.to_pylist() if r["fwd_energy_uJ"] > 0 and r["fwd_time_us"] > 0]
    for cpu, device in _DEVICES.items():
        here = [r for r in rows if r["cpu"] == cpu]
        names = []
        for r in here:
            numbers = [r["batch_size"], r["in_chan"] or r["in_size"], r["out_chan"] or r["out_size"],
                       r["side_len"] or r["im_side_length"], r["k_size"] or r["k_side_length"],
                       r["stride"]]  # fmt: skip
            code = " ".join((r["layer"], *("0" if n is None else str(int(n)) for n in numbers)))
            names.append(code.replace(" ", "-"))
            codes[names[-1]] = code
        out.append(make(
            len(here), target=f"{device}-torch-f32", original=cpu, device=device, kind="cpu", backend="torch",
            precision="f32", batch=[int(r["batch_size"]) for r in here], network=names,
            family=[r["layer"] for r in here], latency_s=[r["fwd_time_us"] / 1e6 for r in here],
            energy_j=[r["fwd_energy_uJ"] / 1e6 for r in here], estimate=False,
        ))  # fmt: skip
    return Imported(joined(out), codes)


def graph(network: str, code: str) -> Graph:
    """The graph of one layer."""
    layer, *numbers = code.split()
    batch, channels, out, side, kernel, stride = (int(n) for n in numbers)
    b = Builder(network)
    if layer == "linear":
        b.output(b.linear(b.input((batch, channels)), out))
    elif layer == "conv":
        b.output(b.conv(b.input((batch, channels, side, side)), out, kernel, stride=stride, pad=0))
    else:
        b.output(b.pool(b.input((batch, channels, side, side)), "MaxPool", kernel, stride, 0))
    return b.graph()
