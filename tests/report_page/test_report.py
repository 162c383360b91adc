"""The report of runs, sweeps and evaluations: what is on the page, that it is whole, and how it is asked for."""

import base64
import io
import json
import random
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from commands import run
from PIL import Image
from run_folders import CONFIG, evaluation_folder, run_folder, sweep_folder

from ddpm_cli.report_page.page import page
from ddpm_cli.report_page.pictures import Pictures
from ddpm_cli.report_page.subject import subjects
from ddpm_cli.results.runs import read
from ddpm_cli.results.table import compared

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """The page taken apart; an element that is closed in the wrong place is an error."""

    def __init__(self, html):
        super().__init__()
        self.open, self.text, self.images, self.addresses, self.tags = [], [], [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        if tag == "img":
            self.images.append(dict(attrs)["src"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += [data.strip()] if data.strip() else []


def page_of(*folders, **options):
    return page(compared(read(folders)), "A title", **{"num_runs": 12, "num_previews": 4, **options})


def test_a_sweep_is_on_one_page(tmp_path):
    found = Page(page_of(sweep_folder(tmp_path / "sweep")))
    text = " ".join(found.text)
    assert "4 runs: 3 done, 1 failed" in text and "WorldError: the loss was not finite" in text
    assert "9 [8, 10]" in text  # a metric with its interval
    assert [name for name in ("prediction", "optimizer.lr", "loss") if name not in found.text] == []
    assert "ddpm-train -m prediction=v,epsilon optimizer.lr=0.001,0.002" in text
    assert "ddpm-train prediction=epsilon optimizer.lr=0.001" in text
    assert "The same place in two grids is the same noise (seed 0)." in text
    assert "The runs differ in prediction: their losses are different quantities; compare them by v_error." in text
    assert len(found.images) == 3 * 4  # runs with previews, and four steps of each
    assert found.tags.count("svg") == 7  # loss, eval/fid, v_error of two splits, and both by level; folded, lr
    assert "v_error_heldout at the end" in text and "More curves (1)" in text


def test_the_page_needs_nothing_else_and_runs_nothing(tmp_path):
    html = page_of(sweep_folder(tmp_path / "sweep"), evaluation_folder(tmp_path / "eval", "ddim", 5, 20.0))
    found = Page(html)
    assert [address for address in found.addresses if not address.startswith(("data:image/webp;base64,", "#"))] == []
    assert not {"script", "link", "iframe", "object"} & set(found.tags)
    assert "url(" not in html and "@import" not in html
    assert "default-src &#x27;none&#x27;" in html
    anchors = [address[1:] for address in found.addresses if address[0] == "#"]
    assert anchors and all(f'id="{anchor}"' in html for anchor in anchors)


def test_names_and_settings_are_text_whatever_they_hold(tmp_path):
    hostile = "<script>alert(1)</script>\"'&"
    log = [{"step": 1, hostile: 2.0}]
    config = {**CONFIG, "name": hostile, hostile: hostile}
    run_folder(
        tmp_path / "a", [f"prediction={hostile}"], config=config, log=log, steps=[1], status=hostile, error=hostile,
        metrics={hostile: 1.0}, environment={hostile: hostile},
    )  # fmt: skip
    evaluation_folder(
        tmp_path / "b", hostile, 5, 20.0, labels=hostile, features={hostile: hostile}, reference={"dataset": hostile}
    )
    found = Page(page(compared(read([tmp_path])), hostile, num_runs=12, num_previews=4))
    assert "script" not in found.tags and sum(hostile in text for text in found.text) >= 8


def test_a_folder_of_samples_is_shown_with_its_walk(tmp_path):
    record = {"checkpoint": "/runs/a/checkpoints/step_00000100.pt", "seed": 7, "sampler": {"name": "ddim"}}
    (tmp_path / "sampling.json").write_text(json.dumps({**record, "versions": {"torch": "2.10"}, "device": "cpu"}))
    (tmp_path / "samples.npz").write_bytes(b"")
    frames = [Image.new("L", (8, 8), 50 * k) for k in range(4)]
    frames[0].save(tmp_path / "grid.png")
    frames[0].save(tmp_path / "walk.gif", save_all=True, append_images=frames[1:])
    found = Page(page_of(tmp_path))
    text = " ".join(found.text)
    assert len(found.images) == 2 and "1 run, done" in text and "2.10" in text
    assert "ddpm-sample ckpt=/runs/a/checkpoints/step_00000100.pt" in text


def test_evaluations_of_one_protocol_share_a_table_and_a_plot(tmp_path):
    for number, (sampler, steps) in enumerate([("ddim", 5), ("ddim", 10), ("heun", 5)]):
        evaluation_folder(tmp_path / str(number), sampler, steps, 100.0 / steps)
    html = page_of(tmp_path)
    text = " ".join(Page(html).text)
    assert "FID@5000 ↓" in text and "recall ↑" in text and "20 [19, 21] (n → ∞: 19)" in text
    assert "real images (the floor)" in text and "1.5" in text
    assert "5000 images, seed 0; against digits train (1498 images), fingerprint cdcdcdcdcdcd" in text
    assert html.count("<svg") == 2 and "<title>heun  9: 20 [19, 21]</title>" in html
    assert "measured in" not in text


def test_evaluations_of_two_protocols_are_not_compared(tmp_path):
    evaluation_folder(tmp_path / "a", "ddim", 5, 20.0)
    evaluation_folder(tmp_path / "b", "ddim", 10, 10.0, num_images=1000)
    html = page_of(tmp_path)
    assert "measured in 2 ways" in html and "<svg" not in html


def test_a_command_makes_the_run_again(tmp_path):
    awkward = "dataset.root='my data/$x'"
    typed = ["prediction=v", awkward, "run_dir=there", "resume=latest", "+hydra.x=1", "init='runs/a'"]
    run_folder(tmp_path / "a", typed)
    evaluation_folder(tmp_path / "b", "ddim", 5, 20.0)
    evaluated, trained = subjects(compared(read([tmp_path])))  # what is done comes first
    assert shlex.split(trained.command) == ["ddpm-train", "prediction=v", awkward, "init=runs/a"]
    step = "/runs/a/checkpoints/step_00000100.pt"
    assert shlex.split(evaluated.command) == ["ddpm-eval", f"ckpt={step}", "sampler=ddim", "sampler.num_steps=5"]


def test_labels_say_how_runs_differ(tmp_path):
    found = subjects(compared(read([sweep_folder(tmp_path / "sweep")])))
    assert [s.label for s in found][:2] == ["0 prediction=v lr=0.001", "1 prediction=v lr=0.002"]


def test_what_is_not_a_number_or_not_there_leaves_a_page(tmp_path):
    run_folder(tmp_path / "a", log=[{"step": 1, "loss": float("nan")}], metrics={"loss": float("inf")}, status="failed")
    run_folder(tmp_path / "b", steps=[5])
    (tmp_path / "b/samples/step_00000009.png").write_bytes(b"no picture")
    (tmp_path / "b/evaluation.json").write_text('{"metrics": {"fid": 3, "kid": {"value": "x"}}, "features": 3}')
    Page(page_of(tmp_path))


ODD = [None, True, -1, 3.5, float("nan"), float("inf"), 1e308, 10**400, "x", "", [], [1], {}, {"a": 1}, "<b>"]


def changed(node, draw):
    if draw.random() < 0.1:
        return draw.choice(ODD)
    if isinstance(node, dict):
        return {key: changed(value, draw) for key, value in node.items()}
    return [changed(value, draw) for value in node] if isinstance(node, list) else node


@pytest.mark.parametrize("seed", range(12))
def test_whatever_the_files_hold_there_is_a_page(tmp_path, seed):
    draw = random.Random(seed)
    sweep_folder(tmp_path / "sweep")
    evaluation_folder(tmp_path / "a", "ddim", 5, 20.0)
    evaluation_folder(tmp_path / "b", "heun", 5, 20.0)
    for file in sorted(path for path in tmp_path.rglob("*") if path.suffix in (".json", ".jsonl", ".yaml")):
        lines = file.read_text().splitlines()[:20]
        file.write_text("\n".join(json.dumps(changed(json.loads(line), draw)) for line in lines))
    Page(page_of(tmp_path))


def test_a_page_has_room_for_so_many_pictures(tmp_path):
    Image.effect_noise((1200, 1200), 120).save(tmp_path / "noise.png")
    pictures = Pictures()
    size = len(pictures.address(tmp_path / "noise.png"))
    assert pictures.room + size == Pictures().room < 8 * 2**20 and size < 2**18
    pictures.room = size - 1
    assert pictures.address(tmp_path / "noise.png") is None and pictures.left_out == 1


def test_of_many_runs_the_first_are_shown_and_all_are_listed(tmp_path):
    for k in range(12):
        run_folder(tmp_path / str(k), [f"seed={k}"], steps=[1], log=[{"step": 1, "loss": 1}])
    html = page_of(tmp_path, num_runs=2)
    assert len(Page(html).images) == 2 and html.count("ddpm-train seed=") == 12
    assert "Left out: curves and pictures of 10 more runs." in html


def test_an_animation_is_thinned_and_as_long_as_before(tmp_path):
    frames = [Image.new("L", (600, 300), 155 + k) for k in range(100)]
    for k, frame in enumerate(frames):
        frame.paste(0, (5 * k, 100, 5 * k + 60, 160))
    frames[0].save(tmp_path / "walk.gif", save_all=True, append_images=frames[1:], duration=50)
    address = Pictures().address(tmp_path / "walk.gif")
    with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as image:
        assert image.size == (512, 256) and image.n_frames == 40
        times = []
        for k in range(image.n_frames):
            image.seek(k)
            image.load()
            times.append(image.info["duration"])
        assert sum(times) == 5000 and image.convert("L").getpixel((0, 0)) == pytest.approx(254, abs=4)


def test_the_command_takes_paths_and_ends_with_the_page(tmp_path):
    sweep = sweep_folder(tmp_path / "outputs/lr=1")
    done = run("report", "outputs/lr=1", cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == str(sweep / "report.html")
    assert run("report", "outputs/lr=1", "title=v, or epsilon?", cwd=tmp_path).returncode == 0
    assert "<h1>v, or epsilon?</h1>" in (sweep / "report.html").read_text()
    run_folder(tmp_path / "b c")
    page_path = run("report", sweep, "b c", cwd=tmp_path).stdout.splitlines()[-1]
    assert re.search(r"/outputs/reports/[\d-]+/[\d-]+/report.html$", page_path)
    assert "5 runs" in (tmp_path / page_path).read_text()
    assert run("report", "b c", "out=here.html", cwd=tmp_path).stdout.splitlines()[-1] == str(tmp_path / "here.html")


def test_what_cannot_be_reported_on_is_told_in_a_line(tmp_path):
    (tmp_path / "empty").mkdir()
    run_folder(tmp_path / "a")
    (tmp_path / "mine.html").write_text("mine")
    wrong = {
        (): "ddpm-report PATH...",
        ("nowhere",): "nowhere: no such folder",
        ("mine.html",): "a file; name the folder of a run",
        ("empty",): "empty holds no run",
        ("a", "out=mine.html"): "no report; choose another file",
        ("a", "num_previews=0"): "num_previews",
        ("a", "--nope"): "--nope",
        ("a", "titel=x"): "did you mean title",
    }
    for words, told in wrong.items():
        done = run("report", *words, cwd=tmp_path, check=False)
        assert (done.returncode, done.stdout) == (2, ""), words
        assert told in done.stderr and len(done.stderr.splitlines()) <= 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "empty", "mine.html"]
    assert not (tmp_path / "a/report.html").exists()
    done = run("report", "a", "empty", "out=both.html", cwd=tmp_path)
    assert "empty holds no run, and is left out" in done.stderr


def test_it_needs_no_torch(tmp_path):
    run_folder(tmp_path / "a")
    code = "import sys; from ddpm_cli.report import main; main(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, "a"], cwd=tmp_path, timeout=60).returncode == 0
