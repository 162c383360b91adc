import os
import subprocess
import sys
import zipfile
import zlib

import pytest
import torch

from ddpm_cli.errors import UserError, WorldError
from ddpm_cli.run_dir import checkpoint


def sealed(path):
    """The file with the checksum behind it that ours have: whoever forges a checkpoint can do that too."""
    path.write_bytes(path.read_bytes() + b"ddpm_cli crc32 %08x\n" % zlib.crc32(path.read_bytes()))


CONTENT = {"step": 3, "config": {"a": [1, 2.5, None, "x"]}, "network": {"w": torch.arange(1000.0)}, "emas": {}}


def test_what_is_saved_is_what_is_loaded(tmp_path):
    checkpoint.save(tmp_path / "a.pt", CONTENT)
    loaded = checkpoint.load(tmp_path / "a.pt")
    assert loaded["config"] == CONTENT["config"] and torch.equal(loaded["network"]["w"], CONTENT["network"]["w"])
    assert os.listdir(tmp_path) == ["a.pt"]


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="the system does not tell a process' peak")
def test_saving_takes_no_second_copy_of_the_weights(tmp_path):
    """In a process of its own, whose memory nobody else takes or gives back."""
    done = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path / "a.pt")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, peak, size = (int(word) for word in done.stdout.split())
    assert size > 60 * 2**20 and peak - before < size / 4


PEAK = """
import sys
from pathlib import Path

import torch

from ddpm_cli.run_dir import checkpoint

def told(key):
    with open("/proc/self/status") as file:
        return 1024 * int(next(line.split()[1] for line in file if line.startswith(key)))

content = {"step": 3, "config": {}, "emas": {}, "network": {str(k): torch.ones(2**20) for k in range(16)}}
path = Path(sys.argv[1])
checkpoint.save(path, {**content, "network": {}})  # what saving needs at all
before = told("VmRSS")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak begins here
checkpoint.save(path, content)
with path.open("rb") as file:
    print(before, told("VmHWM"), file.seek(0, 2))
"""


def test_flipped_bits_and_truncation_are_found_before_anything_is_loaded(tmp_path):
    checkpoint.save(tmp_path / "a.pt", CONTENT)
    good = (tmp_path / "a.pt").read_bytes()
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        place = int(torch.randint(len(good) * 8, (), generator=generator))
        flipped = bytearray(good)
        flipped[place // 8] ^= 1 << place % 8
        (tmp_path / "b.pt").write_bytes(flipped)
        with pytest.raises(checkpoint.Damaged, match="b.pt"):
            checkpoint.load(tmp_path / "b.pt")
    for length in range(0, len(good), len(good) // 40):
        (tmp_path / "b.pt").write_bytes(good[:length])
        with pytest.raises(UserError, match="damaged"):
            checkpoint.load(tmp_path / "b.pt")


@pytest.mark.parametrize("wrong", ["directory", "other", "state_dict", "text", "newer", "missing"])
def test_what_is_no_checkpoint_is_refused_by_name(tmp_path, wrong):
    path = tmp_path / "x.pt"
    if wrong == "directory":
        path.mkdir()
    elif wrong == "other":
        torch.save([1, 2], path)
        sealed(path)
    elif wrong == "state_dict":
        torch.save({"w": torch.ones(2)}, path)
        sealed(path)
    elif wrong == "text":
        path.write_text("hello")
    elif wrong == "newer":
        torch.save({**CONTENT, "format": checkpoint.FORMAT + 1}, path)
        sealed(path)
    with pytest.raises(UserError, match="x.pt"):
        checkpoint.load(path)


def test_a_failing_writer_leaves_the_old_file_and_no_temporary_one(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    checkpoint.save(path, CONTENT)
    good = path.read_bytes()

    def full(content, file):
        file.write(b"half of it")
        raise RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 704 vs 598")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(WorldError, match=r"could not write .*a.pt.*MiB free"):
        checkpoint.save(path, CONTENT)
    assert path.read_bytes() == good and os.listdir(tmp_path) == ["a.pt"]


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    marker = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    torch.save({**CONTENT, "format": 1, "evil": Payload()}, tmp_path / "a.pt")
    sealed(tmp_path / "a.pt")
    with pytest.raises(UserError, match="not a checkpoint") as caught:
        checkpoint.load(tmp_path / "a.pt")
    assert not marker.exists() and "weights_only=False" not in str(caught.value)
    assert zipfile.is_zipfile(tmp_path / "a.pt")


def run_with_a_damaged_newest(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for step in (1, 2, 3):
        checkpoint.save(folder / f"step_{step:08d}.pt", {**CONTENT, "step": step})
    (folder / "step_00000003.pt").write_bytes((folder / "step_00000003.pt").read_bytes()[:-50])
    return folder


def test_a_run_stands_for_its_furthest_checkpoint_that_can_be_read_and_a_file_for_itself(tmp_path, caplog):
    folder = run_with_a_damaged_newest(tmp_path)
    for spec in (tmp_path, str(folder)):
        path, content, damaged = checkpoint.open_checkpoint(spec)
        assert path == folder / "step_00000002.pt" and content["step"] == 2
        assert damaged == [folder / "step_00000003.pt"]
    assert "step_00000003.pt is damaged" in caplog.text and f"passed over for {path}" in caplog.text
    with pytest.raises(checkpoint.Damaged, match="step_00000003.pt"):
        checkpoint.open_checkpoint(folder / "step_00000003.pt")
    assert checkpoint.open_checkpoint(folder / "step_00000001.pt").content["step"] == 1


def test_a_checkpoint_is_read_no_more_often_than_it_takes_to_verify_and_to_unpack_it(tmp_path, monkeypatch):
    folder = run_with_a_damaged_newest(tmp_path)
    read = []
    for name in ("verify", "load"):
        real = getattr(checkpoint, name)
        monkeypatch.setattr(
            checkpoint, name, lambda path, real=real, name=name: (read.append((name, path.name)), real(path))[1]
        )
    checkpoint.open_checkpoint(folder)
    assert len(read) == len(set(read)) == 4  # each of the two files once by each


def test_where_all_checkpoints_are_damaged_another_is_asked_for(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step_00000001.pt").write_bytes(b"damaged")
    with pytest.raises(UserError, match="name another run or checkpoint file with ckpt=PATH") as caught:
        checkpoint.open_checkpoint(str(tmp_path))
    assert "run_dir" not in str(caught.value)


def test_the_folder_that_latest_looked_in_is_told_in_full(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for spec in ("latest", "nowhere"):
        with pytest.raises(UserError, match=f"{tmp_path}/outputs"):
            checkpoint.open_checkpoint(spec)
