"""The downloaded sets: torchvision's own download and unpacking, on small archives served by this machine."""

import gzip
import hashlib
import multiprocessing
import os
import pickle
import socket
import sys
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets

from ddpm_cli.data import torchvision_sets
from ddpm_cli.data.torchvision_sets import cifar10, cifar100, fashion_mnist, mnist, svhn
from ddpm_cli.errors import UserError, WorldError

COUNTS = {"train": 20, "test": 10}
SHARED = Path(os.environ.get("DDPM_SHARED", Path(__file__).parents[2] / "../shared")).resolve()


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def pixels(split, *shape):
    return np.random.default_rng(len(split)).integers(0, 256, (COUNTS[split], *shape)).astype(np.uint8)


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape) + array.tobytes()


def serve_mnist(folder, url, patch, dataset):
    resources = []
    for split, start in (("train", "train"), ("test", "t10k")):
        arrays = {"images-idx3": pixels(split, 28, 28), "labels-idx1": np.arange(COUNTS[split], dtype=np.uint8) % 10}
        for kind, array in arrays.items():
            path = folder / f"{start}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(idx(array)))
            resources.append((path.name, md5(path)))
    patch.setattr(dataset, "mirrors", [url])
    patch.setattr(dataset, "resources", resources)


def serve_cifar(folder, url, patch, dataset):
    """Train and test are one pickle each, as CIFAR-100 has them; 10 has the same format with `labels`."""
    inner, fine = folder / dataset.base_folder, "fine_labels" if dataset is datasets.CIFAR100 else "labels"
    inner.mkdir()
    lists = {}
    for split in COUNTS:
        data = pixels(split, 3, 32, 32).reshape(COUNTS[split], -1)
        (inner / split).write_bytes(pickle.dumps({"data": data, fine: [n % 10 for n in range(COUNTS[split])]}))
        lists[split] = [[split, md5(inner / split)]]
    (inner / "meta").write_bytes(pickle.dumps({"names": list("abcdefghij")}))
    archive = folder / dataset.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(inner, dataset.base_folder)
    patch.setattr(dataset, "url", url + archive.name)
    patch.setattr(dataset, "tgz_md5", md5(archive))
    patch.setattr(dataset, "train_list", lists["train"])
    patch.setattr(dataset, "test_list", lists["test"])
    patch.setattr(dataset, "meta", {"filename": "meta", "key": "names", "md5": md5(inner / "meta")})


def serve_svhn(folder, url, patch, dataset):
    savemat = pytest.importorskip("scipy.io").savemat
    split_list = {}
    for split in COUNTS:
        path = folder / f"{split}_32x32.mat"
        labels = np.arange(COUNTS[split])[:, None] % 10
        savemat(path, {"X": pixels(split, 3, 32, 32).transpose(2, 3, 1, 0), "y": np.where(labels == 0, 10, labels)})
        split_list[split] = [url + path.name, path.name, md5(path)]
    patch.setattr(dataset, "split_list", split_list)


SETS = {
    "mnist": (mnist, datasets.MNIST, serve_mnist, (1, 28, 28), 10),
    "fashion_mnist": (fashion_mnist, datasets.FashionMNIST, serve_mnist, (1, 28, 28), 10),
    "cifar10": (cifar10, datasets.CIFAR10, serve_cifar, (3, 32, 32), 10),
    "cifar100": (cifar100, datasets.CIFAR100, serve_cifar, (3, 32, 32), 100),
    "svhn": (svhn, datasets.SVHN, serve_svhn, (3, 32, 32), 10),
}


class Recorder(SimpleHTTPRequestHandler):
    """Notes what is asked for, in place of printing it."""

    def __init__(self, *arguments, requests, **keywords):
        self.requests = requests
        super().__init__(*arguments, **keywords)

    def log_request(self, *_):
        if self.headers.get("Method") != "HEAD":  # torchvision follows redirections first
            self.requests.append(self.path)


class Served:
    """A set whose files lie in `folder`, on a server, and are downloaded to `root`."""

    def __init__(self, name, tmp_path, patch):
        self.load_set, dataset, make, self.shape, self.num_classes = SETS[name]
        self.folder, self.root = tmp_path / "server", tmp_path / "data"
        self.folder.mkdir()
        self.requests = []
        handler = partial(Recorder, directory=self.folder, requests=self.requests)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        patch.setenv("no_proxy", "127.0.0.1")
        make(self.folder, f"http://127.0.0.1:{self.server.server_port}/", patch, dataset)

    def load(self, **changed):
        yaml = {"root": str(self.root), "cache": None, "download": True, "split": "train"}
        shape = {"channels": self.shape[0], "image_size": self.shape[1], "num_classes": self.num_classes}
        return self.load_set(**{**yaml, **shape, **changed})

    def offline(self):
        self.server.shutdown()
        self.server.server_close()

    def archives(self):
        """What has been downloaded."""
        kinds = ("*.gz", "*.mat")
        return sorted(path for kind in kinds for path in self.root.rglob(kind))


@pytest.fixture
def serve(tmp_path, monkeypatch):
    running = []

    def start(name):
        running.append(Served(name, tmp_path, monkeypatch))
        return running[-1]

    yield start
    for one in running:
        one.offline()


@pytest.fixture(params=SETS)
def served(request, serve):
    return serve(request.param)


@pytest.fixture
def served_cifar10(serve):
    return serve("cifar10")


@pytest.fixture
def served_mnist(serve):
    return serve("mnist")


def test_a_set_is_downloaded_unpacked_and_prepared(served, capsys):
    for split, count in COUNTS.items():
        store = served.load(split=split)
        expected = torch.from_numpy(pixels(split, *served.shape).reshape(count, *served.shape))
        assert torch.equal(store.items, expected)
        assert store.labels.tolist() == [n % 10 for n in range(count)]
        assert store.num_classes == served.num_classes
    assert capsys.readouterr().out == ""


def test_a_downloaded_set_needs_no_network(served):
    first = served.load()
    served.offline()
    again = served.load(download=False)
    assert again.fingerprint == first.fingerprint
    resized = served.load(channels=4 - served.shape[0], image_size=16)
    assert resized.item_shape == (4 - served.shape[0], 16, 16) and resized.fingerprint != first.fingerprint


def test_files_put_there_by_hand_are_unpacked_without_downloading(served):
    served.load()
    by_hand = served.root.with_name("by_hand")
    for archive in served.archives():
        place = by_hand / archive.relative_to(served.root)
        place.parent.mkdir(parents=True, exist_ok=True)
        archive.rename(place)
    served.offline()
    for download in (False, True):
        assert len(served.load(root=str(by_hand), download=download, cache=None)) == COUNTS["train"]


def test_offline_the_file_and_its_place_are_named(served):
    served.load()
    archives = [path for path in served.archives() if "test" not in path.name]
    place = archives[0].parent.relative_to(served.root)
    served.offline()
    for download, error in ((True, WorldError), (False, UserError)):
        empty = served.root.with_name(f"empty-{download}")
        with pytest.raises(error, match=r"dataset\.root=PATH") as caught:
            served.load(root=str(empty), download=download)
        text = str(caught.value)
        assert len(text.splitlines()) <= 3 and f"into {empty / place} and run again" in text
        assert all(archive.name in text for archive in archives)


def test_blocked_sockets_are_the_worlds_fault(served_cifar10, monkeypatch):
    def refuse(*_, **__):
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(WorldError, match="Network is unreachable"):
        served_cifar10.load()


def test_a_truncated_download_is_named_and_not_accepted(served):
    for path in served.folder.iterdir():
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(WorldError, match="wrong checksum") as caught:
        served.load()
    assert any(str(archive) in str(caught.value) for archive in served.archives())
    assert len(str(caught.value).splitlines()) <= 3


def test_a_truncated_archive_is_downloaded_again(served):
    served.load()
    broken = served.root.with_name("broken")
    for archive in served.archives():
        place = broken / archive.relative_to(served.root)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(archive.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"^dataset\.root: .* has a wrong checksum"):
        served.load(root=str(broken), download=False)
    assert len(served.load(root=str(broken))) == COUNTS["train"]


def test_a_half_unpacked_cifar_is_unpacked_again(served_cifar10):
    served_cifar10.load()
    served_cifar10.offline()
    half = served_cifar10.root / datasets.CIFAR10.base_folder / "train"
    half.write_bytes(half.read_bytes()[:100])
    store = served_cifar10.load(image_size=16)
    assert len(store) == COUNTS["train"]


@pytest.mark.parametrize("download", [True, False])
@pytest.mark.parametrize("left", [0, 2, 100])
def test_a_half_unpacked_mnist_is_unpacked_again(served_mnist, left, download):
    first = served_mnist.load()
    served_mnist.offline()
    half = served_mnist.root / "MNIST/raw/train-images-idx3-ubyte"
    half.write_bytes(half.read_bytes()[:left])
    assert served_mnist.load(download=download).fingerprint == first.fingerprint


def test_a_damaged_mnist_without_its_archives_is_named(served_mnist):
    served_mnist.load()
    for archive in served_mnist.archives():
        archive.unlink()
    half = served_mnist.root / "MNIST/raw/t10k-labels-idx1-ubyte"
    half.write_bytes(half.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"{half} is cut short"):
        served_mnist.load(download=False)
    served_mnist.load()


def load_alone(served, split):
    torch.set_num_threads(1)  # OpenMP's threads do not survive the fork
    served.load(split=split)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_runs_that_start_together_download_once(serve, name):
    served = serve(name)
    fork = multiprocessing.get_context("fork")
    runs = [fork.Process(target=load_alone, args=(served, split), daemon=True) for split in ("train", "train", "test")]
    for run in runs:
        run.start()
    for run in runs:
        run.join(30)
    assert [run.exitcode for run in runs] == [0, 0, 0]
    assert len(served.requests) == len(set(served.requests)) > 0


def test_other_files_in_the_place_of_mnist_are_another_set(served_mnist):
    first = served_mnist.load()
    images = served_mnist.root / "MNIST/raw/train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-1] + bytes([255 - images.read_bytes()[-1]]))
    second = served_mnist.load()
    assert second.fingerprint != first.fingerprint and not torch.equal(first.items, second.items)


def test_a_full_disk_while_unpacking_is_told(served_cifar10, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "extractall", full)
    with pytest.raises(WorldError, match=r"cannot unpack .*cifar-10-python\.tar\.gz.*No space left"):
        served_cifar10.load()


def test_a_root_that_cannot_hold_a_cache_keeps_the_set_in_memory(served_cifar10, caplog):
    served_cifar10.load()
    (served_cifar10.root / "cache").write_text("in the way")
    with pytest.raises(UserError, match=r"dataset\.cache=PATH"):
        served_cifar10.load(cache=str(served_cifar10.root / "cache"))
    other = served_cifar10.root / ".prepared"
    other.rename(served_cifar10.root / "old")
    other.write_text("in the way")
    store = served_cifar10.load()
    assert "dataset.cache=PATH" in caplog.text
    assert torch.equal(store.items, torch.from_numpy(pixels("train", 3, 32, 32)))


def test_labels_can_be_left_out(served_cifar10):
    assert served_cifar10.load(num_classes=0).labels is None


def test_a_prepared_set_does_without_its_files(served_cifar10):
    first = served_cifar10.load(cache=str(served_cifar10.root.with_name("cache")))
    again = served_cifar10.load(cache=str(served_cifar10.root.with_name("cache")), root="nowhere", download=False)
    assert again.fingerprint == first.fingerprint and not Path("nowhere").exists()


def test_bars_stay_out_of_logs(served_cifar10, capsys):
    assert not sys.stderr.isatty()
    served_cifar10.load()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("key", "value"),
    [("split", "all"), ("channels", 2), ("num_classes", 7)],
)
def test_bad_values_name_the_key(served_cifar10, key, value):
    with pytest.raises(UserError, match=rf"^dataset\.{key} .*got {value!r}"):
        served_cifar10.load(**{key: value})
    assert not served_cifar10.root.exists()


def test_cifar100_has_a_hundred_names_in_the_order_of_the_alphabet():
    names = torchvision_sets._CIFAR100.split()
    assert len(set(names)) == 100 and names == sorted(names)


@pytest.mark.skipif(not (SHARED / "data/MNIST").is_dir(), reason=f"no {SHARED}/data/MNIST")
def test_the_real_mnist(tmp_path):
    yaml = {"root": str(SHARED / "data"), "cache": str(tmp_path), "download": False, "channels": 1, "image_size": 28}
    store = mnist(**yaml, split="test", num_classes=10)
    assert store.items.shape == (10_000, 1, 28, 28) and store.labels[:5].tolist() == [7, 2, 1, 0, 4]
