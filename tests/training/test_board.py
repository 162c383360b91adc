"""What TensorBoard makes of an outputs folder: read as its HParams page does."""

from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams.api_pb2 import DATA_TYPE_FLOAT64, DATA_TYPE_STRING
from tensorboard.plugins.hparams.backend_context import Context

from ddpm_cli.config.check import configuration
from ddpm_cli.results.hparams import hparams
from ddpm_cli.training.trackers.tensorboard import Board


def board(folder, *overrides):
    """The board of a run that was begun with these overrides and logged once."""
    choices = dict(text.split("=") for text in overrides if "." not in text)
    written = Board(folder, 0)
    cfg = configuration("train", *overrides)
    written.begin(hparams(cfg, {"schedule": "cosine", "model": "unet_digits", **choices}), "seed: 0", 0)
    written.scalars({"curves/loss": 0.5, "eval/fid": 3.0}, 1)
    written.end("done", {})


def test_hparams_have_a_column_for_all_that_any_run_varies_with_numbers_as_numbers(tmp_path):
    for job, (schedule, lr) in enumerate((s, lr) for s in ("linear", "cosine") for lr in ("1e-4", "2e-4")):
        board(tmp_path / f"multirun/first/{job}", f"schedule={schedule}", f"optimizer.lr={lr}")
    for job, size in enumerate((64, 256)):
        board(tmp_path / f"multirun/second/{job}", f"training.batch_size={size}", "schedule.zero_terminal_snr=true")
    board(tmp_path / "alone", "model=cnn", "name=mine", "model.channels=8")
    multiplexer = EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(tmp_path))
    multiplexer.Reload()
    context = Context(TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(tmp_path))))
    metadata = context.hparams_metadata(RequestContext(), "")
    experiment = context.experiment_from_metadata(RequestContext(), "", True, metadata, None)
    columns = {info.name: info for info in experiment.hparam_infos}
    numbers = ["optimizer.lr", "training.batch_size"]
    assert all(columns[key].type == DATA_TYPE_FLOAT64 and columns[key].differs for key in numbers)
    assert all(columns[key].type == DATA_TYPE_STRING and columns[key].differs for key in ("schedule", "model"))
    assert columns["schedule.zero_terminal_snr"].differs and columns["seed"].type == DATA_TYPE_FLOAT64
    assert [metric.name.tag for metric in experiment.metric_infos] == ["curves/loss", "eval/fid"]
    assert not [key for key in columns if key.endswith(("_target_", ".root", "run_dir"))]
