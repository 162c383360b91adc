"""Sounds brought into a page as text, to be played there: the beginning of each, as long as the page has room."""

import base64
import io
import logging
import wave
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger("ddpm_cli")
_LONGEST = 480_000  # bytes of samples: half a minute at 8 kHz, five seconds of a CD


@dataclass
class Recordings:
    """Hands out `data:` addresses as long as there is room in the page."""

    room: int = 4 * 2**20  # characters
    left_out: int = 0

    def address(self, file: Path) -> str | None:
        """The beginning of a WAV file; None where it cannot be read, or the page is full."""
        try:
            data = _beginning(file)
        except (OSError, EOFError, wave.Error) as error:
            log.warning("left out %s: %s", file, error)
            return None
        text = f"data:audio/wav;base64,{base64.b64encode(data).decode()}"
        if len(text) > self.room:
            self.left_out += 1
            return None
        self.room -= len(text)
        return text


def _beginning(file: Path) -> bytes:
    out = io.BytesIO()
    with open(file, "rb") as opened, wave.open(opened) as sound, wave.open(out, "wb") as shorter:
        shorter.setparams(sound.getparams())
        shorter.writeframes(sound.readframes(_LONGEST // (sound.getsampwidth() * sound.getnchannels())))
    return out.getvalue()
