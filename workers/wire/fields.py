"""What messages are made of: fields, each with its bound."""

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

VERSION: Final = 1
MAX_BATCH: Final = 64
"""Most frames in a batch."""

# \Z and not $, which lets a line break follow.
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:-]{1,64}\Z")]
Uid = Annotated[str, Meta(pattern=r"^[A-Za-z0-9-]{1,64}\Z")]
Index = Annotated[int, Meta(ge=0, lt=2**40)]
Serial = Annotated[int, Meta(ge=0, lt=2**62)]
BatchSize = Annotated[int, Meta(ge=1, le=MAX_BATCH)]
Text = Annotated[str, Meta(max_length=500)]
Path = Annotated[str, Meta(max_length=4096)]
Shape = Annotated[tuple[Annotated[int, Meta(ge=0, lt=2**31)], ...], Meta(max_length=8)]
DType = Annotated[str, Meta(pattern=r"^[<>|=]?[biuf][0-9]{1,2}\Z")]
Range = tuple[Index, Index]
"""Half-open: ``(first, stop)``."""
Ranges = Annotated[list[Range], Meta(max_length=2048)]

Policy = Literal["drop", "spill", "block"]
"""What becomes of frames that find no room: dropped and counted; written to a file of the pool's; waited for."""


class Message(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A line of the conversation."""
