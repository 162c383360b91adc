"""Pictures brought into a page as text: made small, and no more of them than a page that is sent around should hold."""

import base64
import io
import logging
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

from PIL import Image
from PIL.ImageSequence import Iterator

log = logging.getLogger("ddpm_cli")

_SIDE = 512  # pixels that a picture is fitted into, for screens that show half of it
_FRAMES, _READ = 40, 400  # of an animation: shown, and looked at
_LARGEST_FILE = 64 * 2**20  # bytes


@dataclass
class Pictures:
    """Hands out `data:` addresses as long as there is room in the page."""

    room: int = 5 * 2**20  # characters
    left_out: int = 0

    def address(self, file: Path) -> str | None:
        """The picture or animation in the file as WebP; None where it cannot be read, or the page is full."""
        try:
            if file.stat().st_size > _LARGEST_FILE:
                raise OSError("it is too large")
            with Image.open(file) as image:
                data = _webp([(_fitted(f), int(f.info.get("duration", 60))) for f in islice(Iterator(image), _READ)])
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            log.warning("left out %s: %s", file, error)
            return None
        text = f"data:image/webp;base64,{base64.b64encode(data).decode()}"
        if len(text) > self.room:
            self.left_out += 1
            return None
        self.room -= len(text)
        return text


def _webp(frames: list[tuple[Image.Image, int]]) -> bytes:
    """Of at most 40 of the frames, the first and the last among them; each lasts as long as those it stands for."""
    kept = sorted({round(k * (len(frames) - 1) / (_FRAMES - 1)) for k in range(_FRAMES)})
    times = [sum(time for _, time in frames[before + 1 : k + 1]) for before, k in pairwise([-1, *kept])]
    out, (first, *others) = io.BytesIO(), [frames[k][0] for k in kept]
    more = {"save_all": True, "append_images": others, "duration": times, "loop": 0} if others else {}
    first.save(out, "WEBP", quality=60 if others else 82, **more)
    return out.getvalue()


def _fitted(image: Image.Image) -> Image.Image:
    plain = image.convert("RGB")
    scale = min(1.0, _SIDE / max(plain.size))
    size = tuple(max(1, round(side * scale)) for side in plain.size)
    return plain if scale == 1.0 else plain.resize(size, Image.Resampling.LANCZOS)  # type: ignore[arg-type]
