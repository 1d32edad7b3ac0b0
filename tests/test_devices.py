"""Device files: what is read, what is refused, and how they are kept."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretell import api, backends, devices
from foretell.build import add_device
from foretell.doctor import checks
from foretell.errors import TargetError
from foretell.report import sheets

BOARD = 'name = "my-board"\ntransport = "ssh"\naddress = "pi@10.0.0.7"\n'
PHONE = (
    'name = "p"\ntransport = "adb"\naddress = "emulator-5554"\nrunner = "benchmark_model"\n'
    'tool = "/data/local/tmp/benchmark_model"\nfolder = "/data/local/tmp/foretell"\n'
)


def test_a_full_file():
    d = devices.parse(
        BOARD + 'description = "Pi 4"\nport = 2222\nidentity = "~/.ssh/id"\nknown_hosts = "/k"\nrunner = "foretell"\n'
        'python = "~/venv/bin/python"\nbackend = "litert"\nprecision = "int8"\nthreads = 4\n'
        '[figures]\nmemory_bytes = { value = 4294967296, source = "data sheet, page 3" }\n',
        "f",
    )
    assert (d.port, d.threads, d.precision, d.python) == (2222, 4, "int8", "~/venv/bin/python")
    assert d.figures == (devices.Figure("memory_bytes", 2.0**32, "data sheet, page 3"),)
    assert d.to_dict()["figures"] == {"memory_bytes": {"value": 2.0**32, "source": "data sheet, page 3"}}
    assert hash(d)
    assert devices.parse(PHONE, "f").runner == "benchmark_model"
    assert devices.parse(BOARD, "f").figures == ()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "no name"), ("name = ", "not TOML"), ("\0", "not TOML"), (BOARD + BOARD, "not TOML"), ("x = " + "[" * 5000, "not TOML"),
        ("port = " + "9" * 5000, "not TOML|port"), (BOARD + "speed = 3", "unknown key 'speed'"), (BOARD + 'port = "22"', "port"),
        (BOARD + "port = 0", "port"), (BOARD + "port = true", "port"), (BOARD + "port = 65536", "port"),
        (BOARD + "threads = 0", "threads"), (BOARD + "threads = 1.5", "threads"), (BOARD + 'description = "a\\nb"', "description"),
        (BOARD + 'python = "python; rm -rf /"', "python"), (BOARD + 'python = "$(id)"', "python"), (BOARD + 'python = "-c"', "python"),
        (BOARD + 'python = "a\\u0000b"', "python"), (BOARD + 'identity = "key"', "identity"), (BOARD + 'identity = "~/%h"', "identity"),
        (BOARD + 'known_hosts = "/a\\" -o ProxyCommand=x"', "known_hosts"), (BOARD + 'runner = "bash"', "runner"),
        (BOARD + 'backend = "../x"', "backend"), (BOARD + 'precision = ""', "precision"), (BOARD + 'tool = "/x"', "tool is for"),
        (BOARD + 'runner = "benchmark_model"', "no tool"), (BOARD + "figures = 3", "figures"),
        (BOARD + "[figures]\nspeed = 3", "unknown figure"), (BOARD + "[figures]\ncores = 4", "needs a value and a source"),
        (BOARD + '[figures]\ncores = {value = 4, source = ""}', "source"), (BOARD + '[figures]\ncores = {value = 0, source = "x"}', "positive"),
        (BOARD + '[figures]\ncores = {value = nan, source = "x"}', "positive"), (BOARD + '[figures]\ncores = {value = inf, source = "x"}', "positive"),
        (BOARD + '[figures]\ncores = {value = true, source = "x"}', "positive"), (BOARD + '[figures]\ncores = {value = "4", source = "x"}', "positive"),
        (PHONE + "port = 22", "port is for"), (PHONE + 'python = "p"', "python is for"), (PHONE + 'precision = "bf16"', "f32 or int8"),
        (PHONE.replace('runner = "benchmark_model"\n', ""), "over adb"), (PHONE.replace('"/data/local/tmp/foretell"', '"tmp"'), "folder"),
        (PHONE.replace("emulator-5554", "-e"), "serial"), (PHONE.replace("emulator-5554", "a b"), "serial"),
    ],
)  # fmt: skip
def test_hostile_and_wrong_files(text, match):
    with pytest.raises(TargetError, match=match) as e:
        devices.parse(text, "board.toml")
    assert str(e.value).startswith("board.toml: ")


@pytest.mark.parametrize("name", ["", "..", ".x", "-x", "a/b", "A", "a b", "a\nb", "x" * 65, "ä", "a\0", "con:"])
def test_hostile_names(name):
    with pytest.raises(TargetError):
        devices.parse(BOARD.replace('"my-board"', _quoted(name)), "f")
    assert devices.path_of(name) is None


@pytest.mark.parametrize(
    "address",
    [
        "",
        "-oProxyCommand=x",
        "pi@-oProxyCommand=x",
        "a b",
        "a;b",
        "$(x)",
        "a\nb",
        "@host",
        "pi@",
        "ssh://x",
        "a@b@c",
        "a%h",
        'a"b',
    ],
)
def test_hostile_addresses(address):
    with pytest.raises(TargetError, match="address"):
        devices.parse(BOARD.replace('"pi@10.0.0.7"', _quoted(address)), "f")


@pytest.mark.parametrize("address", ["host", "pi@host.local", "pi@fe80::1", "my_user@10.0.0.1", "alias-1"])
def test_good_addresses(address):
    assert devices.parse(BOARD.replace("pi@10.0.0.7", address), "f").address == address


def _quoted(text: str) -> str:
    return '"' + "".join(c if c.isalnum() and c.isascii() else f"\\u{ord(c):04x}" for c in text) + '"'


KEYS = st.sampled_from([*devices._KEYS, "other"])
VALUES = st.one_of(
    st.text(max_size=12).map(lambda t: _quoted("".join(c for c in t if ord(c) < 0xD800))), st.integers(-(10**6), 10**6).map(str),
    st.sampled_from(["true", "1.5", "nan", "[]", "{}", '"ssh"', '"adb"', '"host"', '"foretell"', '"benchmark_model"', '"/a/b"', "2024-01-01"]),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(
        st.text(max_size=60),
        st.dictionaries(KEYS, VALUES, max_size=8).map(lambda d: "\n".join(f"{k} = {v}" for k, v in d.items())),
    )
)
def test_any_text_is_a_device_or_an_error(text):
    try:
        device = devices.parse(text, "f")
    except TargetError:
        return
    for value in (
        device.name,
        device.address,
        device.python,
        device.tool,
        device.folder,
        device.identity,
        device.known_hosts,
    ):
        assert value.isprintable()
        assert not value.startswith("-")
    assert tomllib.loads(text)["name"] == device.name


def test_kept_whole_or_not_at_all(home, tmp_path):
    file = tmp_path / "b.toml"
    file.write_text(BOARD)
    assert devices.added() == []
    devices.add(file)
    assert devices.added() == ["my-board"]
    devices.add(file)  # the same again
    file.write_text(BOARD + "port = 23\n")
    with pytest.raises(TargetError, match="--force"):
        devices.add(file)

    def full(*_):
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as m:
        m.setattr(devices.os, "replace", full)
        with pytest.raises(OSError, match="No space"):
            devices.add(file, force=True)
    assert devices.load("my-board").port == 22
    assert [p.name for p in devices.folder().iterdir()] == ["my-board.toml"]
    devices.add(file, force=True)
    assert devices.load("my-board").port == 23
    devices.remove("my-board")
    for call in (devices.load, devices.remove):
        with pytest.raises(TargetError, match="targets add"):
            call("my-board")


def test_files_that_cannot_be_read(home, tmp_path):
    file = tmp_path / "b.toml"
    for data, match in ((b"\xff\xfe", "UTF-8"), (b"#" * 70000, "larger")):
        file.write_bytes(data)
        with pytest.raises(TargetError, match=match):
            devices.read_device(file)
    with pytest.raises(TargetError, match="cannot be read"):
        devices.read_device(tmp_path / "absent.toml")
    with pytest.raises(TargetError, match="cannot be read"):
        devices.read_device(tmp_path)


def test_a_damaged_device_is_told_everywhere(home):
    devices.folder().mkdir(parents=True)
    (devices.folder() / "my-board.toml").write_text("oops")
    (devices.folder() / "other.toml").write_text(BOARD)
    for name in ("my-board", "other"):
        with pytest.raises(TargetError, match=r"my-board"):
            backends.resolve(name)
    assert all("error" in e for e in api.unbuilt_devices())
    (sheet,), data = sheets.targets(api.unbuilt_devices())
    assert [r[1] for r in sheet.rows] == ["corrupt", "corrupt"]
    assert [d["name"] for d in data] == ["my-board", "other"]
    assert {c.name: c.state for c in checks()}["device my-board"] == "bad"


@pytest.mark.parametrize(
    "name",
    ["ort", "remote", "fake", "ethos-u55-128", "ethos-u55-7", "zigzag-x", "ort-f32-1t", "litert-int8", "openvino-mine"],
)
def test_names_that_stand_for_something_else(home, tmp_path, name):
    file = tmp_path / "b.toml"
    file.write_text(BOARD.replace("my-board", name))
    with pytest.raises(TargetError, match="stands for another target"):
        add_device(file, check=False)


@pytest.mark.parametrize("backend", ["remote", "vela", "zigzag", "tflite_micro"])
def test_backends_that_measure_nothing_on_a_device(home, tmp_path, backend):
    file = tmp_path / "b.toml"
    file.write_text(BOARD + f'backend = "{backend}"\n')
    with pytest.raises(TargetError, match="measures nothing"):
        add_device(file, check=False)


def test_a_device_is_a_target(home, tmp_path):
    file = tmp_path / "b.toml"
    file.write_text(BOARD + "threads = 3\n")
    device, found = add_device(file, check=False)
    assert found == ""
    backend, target = backends.resolve("my-board")
    assert (backend.name, target.name, target.threads, target.device) == ("remote", "my-board", 3, "my-board")
    assert backends.resolve("my-board", "f32", 3)[1] == target
    with pytest.raises(TargetError):
        backends.resolve("my-board", "int8")
    with pytest.raises(TargetError, match="my-board"):
        backends.resolve("remote")
    (entry,) = api.unbuilt_devices()
    assert entry["device"] == device.to_dict()
    assert {c.name: c.state for c in checks()}["device my-board"] == "ok"
