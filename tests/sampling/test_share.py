"""Ranks share the images: whoever draws them, however often they are stopped, they are the bytes of one rank."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from commands import TINY, run

from ddpm_cli.build.model import build_denoiser
from ddpm_cli.config.check import configuration
from ddpm_cli.media.images import Images
from ddpm_cli.run_dir import checkpoint
from ddpm_cli.sampling import batch_size, share
from ddpm_cli.sampling.pipeline import SamplingPipeline
from ddpm_cli.sampling.run import draw_told
from ddpm_cli.system.launch_env import Place

ROOT = Path(__file__).resolve().parents[2]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a checkpoint of random weights, and 14 images drawn by one rank in batches of 4."""
    folder = tmp_path_factory.mktemp("share")
    cfg = configuration("train", *TINY)
    torch.manual_seed(1)
    network = build_denoiser(cfg).network
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    weights = network.state_dict()
    checkpoint.save(folder / "a.pt", {"step": 1, "config": cfg, "network": weights, "emas": {"ema": weights}})
    sample(folder, "whole")
    return folder


def sample(place, out, *more, check=True):
    args = ["ckpt=a.pt", "num_images=14", "batch_size=4", "sampler.num_steps=4", "precision=fp32", "animate=true"]
    return run("sample", *args, f"out_dir={out}", *more, cwd=place, check=check)


def written(folder):
    """Each file of results by name; the log and the record tell of the invocation."""
    files = [*folder.glob("images/*"), *(folder / name for name in ("grid.png", "samples.npz", "walk.gif", "x_0.png"))]
    return {path.name: path.read_bytes() for path in files}


class Quiet:
    """In place of signals, which only a main thread may heed."""

    def start(self):
        pass

    def __bool__(self):
        return False


@pytest.fixture
def threads(monkeypatch):
    """Ranks beside the first as threads of this process, which need not import torch. All begin together: each has a
    batch. Gives the list of what went wrong in them."""
    failed = []

    class Threads:
        def __init__(self, work, count):
            assert work.args == (draw_told,)
            self.store = dist.HashStore()
            started = threading.Barrier(count)
            real = share.Share.numbers

            def numbers(self, count):
                for i, number in enumerate(real(self, count)):
                    if i == 0:
                        started.wait(60)
                    yield number

            monkeypatch.setattr(share.Share, "numbers", numbers)
            self.threads = [threading.Thread(target=self.follow, args=(rank, count)) for rank in range(1, count)]
            for thread in self.threads:
                thread.start()

        def follow(self, rank, count):
            try:
                share.follow(draw_told, Place(rank, count, rank, "devices"), self.store, Quiet())
            except Exception as error:
                failed.append(error)

        def death(self):
            return None

        def end(self, grace):
            for thread in self.threads:
                thread.join(60)

    monkeypatch.setattr(share, "Children", Threads)
    return failed


@pytest.mark.parametrize("count", [2, 3])
def test_two_and_three_ranks_give_the_bytes_of_one(place, threads, monkeypatch, count):
    real, drawn = SamplingPipeline.walk, []
    monkeypatch.setattr(SamplingPipeline, "walk", lambda self, batch: (drawn.append(batch.start), real(self, batch))[1])
    done = sample(place, f"ranks_{count}", f"devices={count}")
    assert sorted(drawn) == [0, 4, 8, 12]  # each batch once
    assert threads == [] and f"on {count} ranks" in done.stderr
    assert done.stdout.splitlines() == [str(place / f"ranks_{count}")]
    assert written(place / f"ranks_{count}") == written(place / "whole")


def test_what_was_stopped_amid_a_batch_is_completed_to_the_same_bytes(place, threads, monkeypatch):
    sample(place, "partly")
    removed = [place / f"partly/images/{k:06d}.png" for k in (1, 2, 13)]
    for path in removed:
        path.unlink()
    (place / "partly/images/.000005.png.1.tmp").touch()
    before = {path: path.stat().st_mtime_ns for path in (place / "partly/images").glob("0*")}
    real, read = Images.load, []
    monkeypatch.setattr(Images, "load", lambda self, file: (read.append(file.name), real(self, file))[1])
    sample(place, "partly")
    assert written(place / "partly") == written(place / "whole")
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())
    assert sorted(read) == sorted(path.name for path in before)  # those of the earlier run alone
    for path in removed:
        path.unlink()
    sample(place, "partly", "devices=2")
    assert threads == [] and written(place / "partly") == written(place / "whole")


def test_nothing_is_read_back_that_was_just_drawn(place, monkeypatch):
    monkeypatch.setattr(Images, "load", lambda self, file: pytest.fail(f"read {file}"))
    sample(place, "memory")
    with np.load(place / "memory/samples.npz") as arrays:
        assert arrays["images"].shape == (14, 8, 8, 1) and arrays["images"].flags["C_CONTIGUOUS"]
    assert (place / "memory/samples.npz").stat().st_size > 14 * 64  # not compressed


def test_a_rank_that_fails_is_told_with_its_cause(place, threads, monkeypatch):
    main, real = threading.main_thread(), Images.to_file

    def to_file(self, x):
        if threading.current_thread() is not main:
            raise OSError(28, "No space left on device")
        return real(self, x)

    monkeypatch.setattr(Images, "to_file", to_file)
    done = sample(place, "failing", "devices=2", check=False)
    told = "rank 1 failed (OSError: [Errno 28] No space left on device)"
    remedy = f"the same command with out_dir={place / 'failing'} goes on"
    assert done.returncode == 3 and done.stderr.splitlines()[-1] == f"error: {told}; {remedy}"
    assert len(threads) == 1 and "Traceback" not in done.stderr and done.stdout == ""


def children():
    """The ranks among this process's children, beside which there may be multiprocessing's own."""
    found = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    pids = [int(child) for path in found for child in path.read_text().split()]
    return [pid for pid in pids if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def when_an_image_is_there(out, do):
    """Does it from a thread beside the command."""

    def wait():
        deadline = time.monotonic() + 120
        while not list(out.glob("images/0*.png")) and time.monotonic() < deadline:
            time.sleep(0.01)
        do()

    threading.Thread(target=wait).start()


@LINUX
@pytest.mark.parametrize("how", ["kill", "signal"])
def test_a_killed_rank_or_a_signal_ends_all_and_the_same_command_goes_on(place, how):
    """The rank that is killed imports torch as yet, for all the time that these images take."""
    out, many, before = place / how, ["num_images=400", "animate=false", "devices=2"], set(children())
    ended = []

    def end():
        ended.append(time.monotonic())
        pid, number = (*(set(children()) - before), signal.SIGKILL) if how == "kill" else (os.getpid(), signal.SIGTERM)
        os.kill(pid, number)

    when_an_image_is_there(out, end)
    done = sample(place, how, *many, check=False)
    assert time.monotonic() - ended[0] < 20 and set(children()) == before
    told = {"kill": "error: rank 1 died (SIGKILL); ", "signal": "stopped by a signal; "}[how]
    assert f"{told}the same command with out_dir={out} goes on" in done.stderr and "Traceback" not in done.stderr
    assert done.returncode == {"kill": 3, "signal": 143}[how] and not list(out.rglob("*.tmp"))
    assert 0 < len(list(out.glob("images/*"))) < 400
    sample(place, how, "num_images=14")
    whole = written(place / "whole")
    assert {name: data for name, data in written(out).items() if name in whole} == whole


@LINUX
def test_a_rank_that_has_not_begun_is_not_waited_for(place, monkeypatch):
    before = set(children())
    sample(place, "early", "devices=2")  # its four batches are drawn before the other has imported torch
    assert set(children()) == before and written(place / "early") == written(place / "whole")


@pytest.mark.slow
def test_a_process_started_here_draws_its_part(place, monkeypatch):
    real = share.Share.numbers

    def numbers(self, count):  # rank 0 begins once the other has taken two
        while self._store.add("next", 0) < 2:
            self.look()
            time.sleep(0.05)
        yield from real(self, count)

    monkeypatch.setattr(share.Share, "numbers", numbers)
    sample(place, "process", "devices=2")
    assert written(place / "process") == written(place / "whole")


@pytest.mark.parametrize(
    "more,told",
    [
        (["devices=2", "device=cuda:1"], "devices=2: device=cuda:1 is one device"),
        (["devices=0"], "devices must be"),
        (["batch_size=0"], "batch_size must be one of auto or a whole number"),
        (["batch_size=many"], "batch_size must be one of auto or a whole number"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(place, more, told):
    done = sample(place, "refused", *more, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and told in done.stderr, done.stderr
    assert not (place / "refused").exists()


def test_the_batch_of_auto_is_what_fits_and_leaves_every_rank_something(monkeypatch):
    class Pipeline:
        device = torch.device("cpu")

    chosen = batch_size.chosen_batch_size
    assert [chosen("auto", Pipeline, total, ranks) for total, ranks in ((1000, 1), (64, 2), (5, 3))] == [64, 32, 2]
    assert chosen(7, Pipeline, 64, 2) == 7
    Pipeline.device = torch.device("cuda")
    monkeypatch.setattr(batch_size, "_fits", lambda pipeline, size: size <= 300)
    assert [chosen("auto", Pipeline, total, ranks) for total, ranks in ((9000, 2), (500, 2))] == [256, 250]


# Ranks that a launcher started


def torchrun(place, *more):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    args = ["ckpt=a.pt", "num_images=14", "batch_size=4", "sampler.num_steps=4", "precision=fp32", "animate=true"]
    return subprocess.run(
        [*launcher, sys.executable, "-m", "ddpm_cli.sample", *args, *more],
        cwd=place, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.mark.slow
def test_ranks_of_torchrun_draw_into_one_folder(place):
    before = set(place.iterdir())
    done = torchrun(place)
    (out,) = place.glob("outputs/samples/*/*")
    assert done.returncode == 0 and done.stdout.splitlines() == [str(out)], done.stderr
    assert written(out) == written(place / "whole") and "on 2 ranks" in done.stderr
    assert set(place.iterdir()) - before == {place / "outputs"}
    refused = torchrun(place, "labels=[99]", "out_dir=none")
    assert refused.stderr.count("error: ") == 1 and "error: labels must lie in" in refused.stderr
    assert refused.returncode and not (place / "none").exists()


@pytest.mark.slow
def test_ranks_of_srun_meet_and_one_that_is_killed_is_missed(place):
    """As srun starts them: on its own, none is ended for another's death."""
    argv = [
        sys.executable,
        "-c",
        "from ddpm_cli.sampling import share; share._SILENT = 4; import ddpm_cli.sample as s; s.main()",
    ]
    argv += ["ckpt=a.pt", "batch_size=4", "precision=fp32", "num_images=4000", "sampler.num_steps=20", "out_dir=srun"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}
    environ |= {"SLURM_JOB_ID": str(os.getpid()), "MASTER_ADDR": "127.0.0.1"}
    ranks = [
        subprocess.Popen(argv, cwd=place, env={**environ, "SLURM_PROCID": rank}, stderr=subprocess.PIPE, text=True)
        for rank in "01"
    ]
    try:
        deadline = time.monotonic() + 300  # a busy machine takes a minute to import torch
        while not list(place.glob("srun/images/0*")) and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(2)  # both are at work
        ranks[1].kill()
        _, err = ranks[0].communicate(timeout=90)
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    assert ranks[0].returncode == 3 and "error: rank 1 is gone; the same command with out_dir=" in err, err
