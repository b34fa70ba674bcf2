"""PyMca's fit configuration → a basis of plain numbers. The one place that needs PyMca."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import basis
from ..errors import FileError, ReductionError

LINEAR_CONTINUA: Final = (0, 1, 2, 3, 4)
"""PyMca's numbers for: none, constant, linear, parabolic, polynomial. The exponential one isn't linear."""


def make_basis(
    cfg: Path | str, out: Path | str | None = None, *, channels: int = 4096, reference: ArrayLike | None = None
) -> basis.Basis:
    """Return the basis that PyMca's linear fit uses for this configuration, and write it to ``out``.

    Taken from the configuration as it is: elements, lines, attenuators, excitation, peak shape, escape, calibration,
    fit range, a polynomial background. Left out, because they aren't linear or change from spectrum to spectrum:
    refining calibration and resolution, background stripping (use a polynomial), pile-up.

    Parameters
    ----------
    cfg
        A PyMca fit configuration.
    out
        Where to write the ``.npz``; None to write nothing.
    channels
        Channels of the spectra to fit.
    reference
        (channels,) counts of a typical spectrum, for the weights (:func:`haltere.workers.basis.operator`).

    Raises
    ------
    ReductionError
        PyMca isn't installed, or the configuration gives nothing to fit.
    FileError
        A file can't be read or written.
    """
    path = Path(cfg)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FileError(f"{path}: the fit configuration can't be read: {error.strerror}") from None
    configuration = linear_configuration(path)
    names, kinds, templates, energy = _templates(configuration, channels)
    counts = None if reference is None else np.asarray(reference, np.float64)
    if counts is not None and counts.shape != (channels,):
        raise ReductionError(f"the reference spectrum has {counts.shape} channels, the basis is for {channels}")
    # Channels outside the fit range have no say: their templates are 0 there, background included.
    operator = basis.operator(templates, counts)
    digest = hashlib.sha256(content).hexdigest()[:12]
    source = f"{path.name} (sha256 {digest}…), PyMca {_version()}"
    made = basis.Basis(names, kinds, templates, operator, energy, source, basis.weights(channels, counts))
    if out is not None:
        made.save(out)
    return made


def linear_configuration(cfg: Path | str) -> dict[str, Any]:
    """Return the configuration with all that isn't linear switched off, for PyMca's own fit to compare with."""
    _version()
    from PyMca5.PyMcaIO import ConfigDict

    configuration = ConfigDict.ConfigDict()
    configuration.read(str(cfg))
    try:
        fit = configuration["fit"]
        if not configuration["peaks"]:
            raise ReductionError(f"{cfg}: the fit configuration names no elements")
    except KeyError as error:
        raise ReductionError(f"{cfg}: no PyMca fit configuration, section {error} is missing") from None
    if fit.get("continuum", 0) not in LINEAR_CONTINUA:
        raise ReductionError(f"{cfg}: an exponential background isn't linear; choose a polynomial one")
    fit.update(linearfitflag=1, stripflag=0, sumflag=0, strategyflag=0, fitfunction=0)
    configuration["concentrations"] = {**configuration.get("concentrations", {}), "usematrix": 0, "useautotime": 0}
    return copy.deepcopy(dict(configuration))


def _templates(
    configuration: dict[str, Any], channels: int
) -> tuple[tuple[str, ...], tuple[str, ...], NDArray[np.float64], tuple[float, float]]:
    """Return names, kinds, templates over all channels, and (zero, gain)."""
    from PyMca5.PyMcaPhysics.xrf import FastXRFLinearFit

    # _fitConfigure and _fitCreateModel are private: the tests pin what they give.
    fit = FastXRFLinearFit.FastXRFLinearFit()
    fit.setFitConfiguration(configuration)
    fit._fitConfigure(concentrations=False, weight=0)
    x = np.arange(channels, dtype=np.float64)
    settings = configuration["fit"]
    low, high = (settings["xmin"], settings["xmax"]) if settings.get("use_limit") else (0, channels - 1)
    fit._mcaTheory.setData(x=x, y=np.ones(channels), xmin=low, xmax=high)
    try:
        model, names, _, backgrounds = fit._fitCreateModel(dtype=np.float64)
    except ValueError as error:
        raise ReductionError(f"PyMca finds nothing to fit: {error}") from None
    used = np.ravel(fit._mcaTheory.xdata).astype(int)
    templates = np.zeros((len(names), channels))
    templates[:, used] = model.T
    kinds = tuple(
        "background" if number < backgrounds else "scatter" if name.startswith("Scatter") else "line"
        for number, name in enumerate(names)
    )
    plain = tuple("_".join(name.replace(".", " ").replace("-", " ").split()) for name in names)
    detector = configuration["detector"]
    return plain, kinds, templates, (float(detector["zero"]), float(detector["gain"]))


def _version() -> str:
    try:
        import PyMca5
    except ImportError as error:
        raise ReductionError(
            f"PyMca isn't installed here ({error}); to make a basis: pip install 'haltere[physics]'"
        ) from None
    return str(PyMca5.version())
