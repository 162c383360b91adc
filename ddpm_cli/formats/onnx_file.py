"""One file of ONNX: the network, of any number of images at once, and in its metadata what it is of."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from ddpm_cli.errors import UserError
from ddpm_cli.formats.header import OURS
from ddpm_cli.formats.traced import Call

_NEEDED = ("onnx", "onnxscript", "onnxruntime")


def check_installed() -> None:
    """UserError unless the packages of the extra are there."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise UserError(f'format=onnx needs {", ".join(missing)}: pip install "ddpm_cli[onnx]"')


def write(file: Path, program: ExportedProgram, told: dict[str, Any]) -> None:
    import onnx

    with _silent():
        made = torch.onnx.export(program, dynamo=True, verbose=False, output_names=["output"])
    assert made is not None
    made.save(str(file), external_data=False)
    model = onnx.load(str(file))
    onnx.helper.set_model_props(model, {OURS: json.dumps(told)})
    onnx.checker.check_model(model)
    onnx.save(model, str(file))


@contextmanager
def _silent() -> Iterator[None]:
    """Without a line for each node that the exporter simplifies."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def opened(file: Path) -> Call:
    """The network in the file, computed by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]

    def call(x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        given = [tensor.numpy() for tensor in (x, time, labels) if tensor is not None]
        (output,) = session.run(None, dict(zip(names, given, strict=True)))
        return torch.from_numpy(output)

    return call
