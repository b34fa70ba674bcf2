"""What recipes refer to by content: masks, bases. A reference is the content's SHA-256."""

from __future__ import annotations

import hashlib
import io
import os
import re
import tempfile
from pathlib import Path

from .errors import FileError, ReductionError

MAX_ASSET = 256 * 1024 * 1024
"""Most bytes in an asset; a 16M mask has 17 MB, an XRF basis 2 MB."""

_REF = re.compile(r"sha256:([0-9a-f]{64})")


def is_ref(value: object) -> bool:
    """Tell whether ``value`` has the form of a reference.

    >>> is_ref("sha256:" + 64 * "0"), is_ref("mask.npy")
    (True, False)
    """
    return isinstance(value, str) and _REF.fullmatch(value) is not None


class AssetStore:
    """A folder of assets, each named by its hash: written once, never changed, checked whenever it is read.

    >>> store = AssetStore(getfixture("tmp_path") / "assets")
    >>> store.read(store.put(b"a mask"))
    b'a mask'
    """

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory)

    def put(self, content: bytes | Path | str) -> str:
        """Store bytes, or a file's, and return the reference. Storing the same again changes nothing.

        Raises
        ------
        FileError
            The file can't be read or is too large, or the folder can't be written.
        """
        data = content if isinstance(content, bytes) else self._load(Path(content))
        if len(data) > MAX_ASSET:
            raise FileError(f"an asset of {len(data)} bytes is over the limit of {MAX_ASSET}")
        digest = hashlib.sha256(data).hexdigest()
        target = self.directory / digest
        if not target.exists():
            self._write(target, data)
        return f"sha256:{digest}"

    def read(self, ref: str) -> bytes:
        """Return the asset's bytes.

        Raises
        ------
        ReductionError
            ``ref`` isn't a reference, there is no such asset, or it isn't what its name says.
        """
        match = _REF.fullmatch(ref) if isinstance(ref, str) else None
        if match is None:
            raise ReductionError(f"{ref!r} is no asset reference: expected sha256: and 64 hex digits")
        path = self.directory / match[1]
        try:
            data = self._load(path)
        except FileError as error:
            raise ReductionError(f"asset {ref[:19]}… can't be had ({error}); put it into the pool's assets") from None
        if hashlib.sha256(data).hexdigest() != match[1]:
            raise ReductionError(f"asset {path} was changed after it was stored; delete it and put it again")
        return data

    def open(self, ref: str) -> io.BytesIO:
        """Return the asset as a file, with :meth:`read`'s checks done."""
        return io.BytesIO(self.read(ref))

    @staticmethod
    def _load(path: Path) -> bytes:
        try:
            with open(path, "rb") as file:
                data = file.read(MAX_ASSET + 1)
        except OSError as error:
            raise FileError(f"{path}: {error.strerror}") from None
        if len(data) > MAX_ASSET:
            raise FileError(f"{path} is over the limit of {MAX_ASSET} bytes for an asset")
        return data

    def _write(self, target: Path, data: bytes) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd, name = tempfile.mkstemp(dir=self.directory, prefix=".new-")  # mode 0600
            try:
                with os.fdopen(fd, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(name, target)  # whoever comes first: the content is the same
            except BaseException:
                os.unlink(name)
                raise
        except OSError as error:
            raise FileError(f"{self.directory}: an asset can't be stored: {error.strerror}") from None
