"""Representations lead back to the samples, and know which of their entries know of a gap."""

import pytest
import torch

from ddpm_cli.media.representation import STFT, Waveform

SPECTRA = [STFT(), STFT(fft_size=126, hop=63, exponent=0.33, scale=1.4), STFT(fft_size=64, hop=16)]
MADE = [*SPECTRA, Waveform(), Waveform(1, 1.0)]


def samples(length, count=3):
    """Of all loudnesses, and silence."""
    noise = torch.randn(count, length, generator=torch.Generator().manual_seed(0))
    return (noise * torch.tensor([0.3, 0.001, 0.0])[:, None]).clamp(-1, 1)


@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize("length", [500, 1953, 4001])
def test_what_is_encoded_in_float16_comes_back_above_60_dB(made, length):
    x = samples(length)
    encoded = made.encode(x)
    assert tuple(encoded.shape[1:]) == made.shape(length)
    back = made.decode(encoded.half().float(), length)
    assert back.shape == x.shape and (back[2] == 0).all()
    error = (x - back).square().sum(1)[:2] / x.square().sum(1)[:2]
    assert (10 * error.log10() < -60).all()


@pytest.mark.parametrize("made", MADE)
def test_entries_outside_the_span_of_a_gap_know_nothing_of_it(made):
    x = samples(2000)[:1]
    changed = x.clone()
    changed[:, 700:900] = 0.5
    span = made.span(700, 900, 2000)
    assert 0 < span.float().mean() < 0.4 and span.ndim == made.encode(x).ndim
    differs = (made.encode(x) - made.encode(changed)).abs() > 1e-6
    assert not differs[~span.expand_as(differs)].any()


def test_a_full_scale_sine_has_the_magnitude_of_the_scale():
    x = torch.sin(torch.arange(2000) * 2 * torch.pi / 8)[None]
    assert STFT(fft_size=64, hop=32, scale=1.4).encode(x).norm(dim=1).max() == pytest.approx(1.4, rel=0.01)


def test_decoding_what_is_no_sounds_spectrum_has_no_gradient_of_nan_and_is_finite():
    x = torch.randn(2, 2, 33, 64).mul(3).requires_grad_()
    made = STFT(fft_size=64, hop=32)
    made.decode(x, 2000).sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: STFT(fft_size=63, hop=20), "representation.fft_size must be even, got 63"),
        (lambda: STFT(fft_size=64, hop=33), "must be at most half of representation.fft_size=64"),
        (lambda: STFT(channels=1), "representation.channels of a spectrum is 2"),
        (lambda: Waveform(channels=2), "representation.channels of a waveform is 1"),
    ],
)
def test_what_cannot_be_inverted_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
