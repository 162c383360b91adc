"""Many files decoded in the order of the set, and what becomes of those that cannot be."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ddpm_cli.data.prepare.cache import Blocks
from ddpm_cli.data.prepare.pool import in_order
from ddpm_cli.errors import UserError
from ddpm_cli.media.base import DecodeError

log = logging.getLogger("ddpm_cli")


@dataclass(frozen=True)
class Item:
    """One item of a set before it is decoded."""

    place: str  # of its file, to be told
    label: int
    decode: Callable[[], np.ndarray]  # DecodeError where the file gives none


def decoded(
    items: Iterable[Item], total: int, *, labelled: bool, many: str, skip: bool = False, max_skipped: float = 0.01
) -> Blocks:
    """Blocks of items, of which there are `total`, and their labels. UserError for what cannot be decoded; with `skip`
    a share of at most max_skipped is left out."""

    def work(some: Sequence[Item]) -> tuple[list[np.ndarray], list[int], list[str]]:
        arrays, labels, failures = [], [], []
        for item in some:
            try:
                arrays.append(item.decode())
                labels.append(item.label)
            except DecodeError as error:
                failures.append(f"{item.place}: {error}")
        return arrays, labels, failures

    skipped: list[str] = []
    for arrays, labels, failures in in_order(work, items):
        skipped += failures
        check_failures(skipped, total, skip, max_skipped, many)
        if arrays:
            yield np.stack(arrays), np.array(labels) if labelled else None
    if skipped:
        log.warning("skipped %d of %d %s: %s", len(skipped), total, many, "; ".join(skipped[:10]))


def check_failures(failures: list[str], total: int, skip: bool, max_skipped: float, many: str) -> None:
    """UserError if what failed, of `total`, is more than may be skipped."""
    most = int(total * max_skipped + 1e-9)
    rule = f"at most {100 * max_skipped:g}% of the {many}, {most} of these {total}"
    named = "; ".join(failures[:3])
    if failures and not skip:
        skipping = f"leave out such files ({rule}) with dataset.on_error=skip"
        why_not = f"dataset.on_error=skip leaves out {rule}"
        remedy = f", or {skipping}" if len(failures) <= most else f" ({why_not})"
        raise UserError(f"{named}\nrepair or remove what cannot be read{remedy}")
    if len(failures) > most:
        raise UserError(
            f"dataset.on_error=skip leaves out {rule}, and {len(failures)} cannot be read (more may follow); set "
            f"dataset.max_skipped, or repair or remove such files:\n{named}"
        )
