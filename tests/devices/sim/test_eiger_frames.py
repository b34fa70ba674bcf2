"""The library of frames: deterministic, masked as an Eiger masks, and physically where its .poni says."""

import os
from pathlib import Path
from typing import Any

import dectris.compression
import fabio
import h5py
import numpy as np
import pyFAI
import pytest
from numpy.typing import NDArray
from pyFAI.calibrant import get_calibrant
from pyFAI.detectors import detector_factory

from haltere.devices.sim.eiger_geometry import MODELS, default_poni, wavelength
from haltere.devices.sim.frames import RINGS, FrameLibrary, ring_angles
from haltere.workers.errors import SettingsError

DATA = Path(os.environ.get("HALTERE_DATA", Path(__file__).parents[4] / "shared" / "data"))
CEO2 = DATA / "ceo2_pilatus1m"
TABULATED = [7.462, 8.618, 12.199, 14.315, 14.955, 17.285, 18.849, 19.344]  # 2θ of CeO2 at 0.4066 Å, degrees


def decoded(library: FrameLibrary, blob: bytes) -> NDArray[Any]:
    dtype = np.dtype(library.dtype)
    raw = dectris.compression.decompress(blob, "bslz4", elem_size=dtype.itemsize)
    return np.frombuffer(raw, dtype).reshape(library.shape)


def pattern(library: FrameLibrary, frame: NDArray[Any], poni: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    mask = frame == np.iinfo(frame.dtype).max
    result = pyFAI.load(str(poni)).integrate1d(frame, 3000, mask=mask, unit="2th_deg", method=("bbox", "csr", "cython"))
    return result.radial, result.intensity


def crest(radial: NDArray[Any], intensity: NDArray[Any], angle: float) -> float:
    """Return the centroid of what rises above half of the crest nearest to ``angle``."""
    near = np.abs(radial - angle) < 0.15
    x, y = radial[near], intensity[near]
    floor = np.percentile(y, 10)
    weights = np.clip(y - floor - 0.5 * (y.max() - floor), 0, None)
    return float((x * weights).sum() / weights.sum())


@pytest.fixture(scope="module")
def synthetic() -> FrameLibrary:
    return FrameLibrary.synthetic("500k", seed=7, phases=lambda x, y: (x, y), realisations=1)


def test_rings_stand_where_the_default_poni_says(synthetic: FrameLibrary, tmp_path: Path) -> None:
    poni = tmp_path / "eiger.poni"
    assert synthetic.poni is not None
    poni.write_text(synthetic.poni)
    ceria = pattern(synthetic, decoded(synthetic, synthetic.blob(0, (1.0, 0.0))), poni)
    nickel = pattern(synthetic, decoded(synthetic, synthetic.blob(0, (0.0, 1.0))), poni)
    for angle in (12.66, 14.62, 20.74):
        assert crest(*ceria, angle) == pytest.approx(angle, abs=0.02)
    for angle in (19.49, 22.54):
        assert crest(*nickel, angle) == pytest.approx(angle, abs=0.02)


@pytest.mark.parametrize("phase", RINGS)
def test_the_rings_are_those_that_pyfai_tabulates(phase: str) -> None:
    calibrant = get_calibrant(phase)
    calibrant.wavelength = wavelength(18000.0)
    tabulated = calibrant.get_2th()
    np.testing.assert_allclose(ring_angles(RINGS[phase], wavelength(18000.0))[: len(tabulated)], tabulated, rtol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_the_gaps_are_where_pyfai_has_them(name: str) -> None:
    library = FrameLibrary.synthetic(name, realisations=1)
    np.testing.assert_array_equal(library.mask & 1, detector_factory(MODELS[name].pyfai).calc_mask())


def test_a_frame_looks_like_an_eigers(synthetic: FrameLibrary) -> None:
    assert (synthetic.shape, synthetic.dtype) == ((514, 1030), "<u2")
    frame = decoded(synthetic, synthetic.blob(0, (1.0, 1.0)))
    dead = synthetic.mask != 0
    assert dead.any()
    assert (frame[dead] == 65535).all()
    assert (frame[~dead] <= synthetic.saturation).all()
    assert synthetic.blobs[0][:12] == (514 * 1030 * 2).to_bytes(8, "big") + (8192).to_bytes(4, "big")


def test_the_sample_decides_the_mix(synthetic: FrameLibrary) -> None:
    where = [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)]
    sums = [float(decoded(synthetic, synthetic.blob(0, position))[synthetic.mask == 0].sum()) for position in where]
    assert sums[0] < min(sums[1:3])
    assert sums[3] == pytest.approx(sums[1] + sums[2] - sums[0], rel=0.01)


def tiny(seed: int) -> FrameLibrary:
    return FrameLibrary(
        lambda first, second: np.full((8, 16), 5.0 + first + second),
        np.zeros((8, 16), np.uint32),
        model=MODELS["500k"],
        seed=seed,
        realisations=4,
    )


def test_the_same_seed_gives_the_same_frames_and_another_seed_others() -> None:
    first, again, other = tiny(3), tiny(3), tiny(4)
    assert first.blobs == again.blobs
    assert set(first.blobs).isdisjoint(other.blobs)
    shown = [first.index(frame, (0.0, 0.0)) for frame in range(200)]
    assert shown == [again.index(frame, (0.0, 0.0)) for frame in range(200)]
    assert len(set(shown)) == 4, "every realisation of the noise is shown"


def test_the_4m_model_matches_pyfais_detector(tmp_path: Path) -> None:
    poni = tmp_path / "4m.poni"
    poni.write_text(default_poni("4M"))
    assert tuple(pyFAI.load(str(poni)).detector.shape) == MODELS["4M"].shape


def test_a_recorded_ceria_frame_keeps_its_rings(tmp_path: Path) -> None:
    if not CEO2.is_dir():
        pytest.skip(f"{CEO2} isn't there; set HALTERE_DATA to the folder of recorded data")
    library = FrameLibrary.from_file(CEO2 / "CeO2_Pilatus1M.tif", flip="ud", seed=1, realisations=1)
    assert library.shape == (1043, 981)
    frame = decoded(library, library.blob(11, (0.0, 0.0)))
    recorded = fabio.open(str(CEO2 / "CeO2_Pilatus1M.tif")).data[::-1]
    assert ((frame == np.iinfo(frame.dtype).max) == (recorded < 0)).all(), "negative pixels have all bits set"
    assert (frame != recorded).any(), "it is another exposure of the same"
    radial, intensity = pattern(library, frame, CEO2 / "CeO2_Pilatus1M.poni")
    for angle in TABULATED:
        assert crest(radial, intensity, angle) == pytest.approx(angle, abs=0.02)


def test_a_frame_of_an_hdf5_stack_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "stack.h5"
    frames = np.full((3, 5, 7), 100, np.int16)
    frames[:, 1, 2] = -1
    with h5py.File(path, "w") as file:
        file["entry/detector/mask"] = np.zeros((5, 7))
        file["entry/detector/data"] = frames
    library = FrameLibrary.from_file(path, flip="lr", realisations=1)
    frame = decoded(library, library.blob(0, (0.0, 0.0)))
    assert frame.shape == (5, 7)
    assert [tuple(map(int, pixel)) for pixel in np.argwhere(frame == 65535)] == [(1, 4)]


@pytest.mark.parametrize(("flip", "content", "said"), [(None, b"no image", "no frame"), ("up", None, "flip 'up'")])
def test_what_cannot_be_replayed_is_named(flip: str | None, content: bytes | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "frame.edf"
    if content is None:
        fabio.edfimage.EdfImage(np.ones((4, 4), np.int32)).write(str(path))
    else:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=said):
        FrameLibrary.from_file(path, flip=flip)
