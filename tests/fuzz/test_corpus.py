"""The fuzzers' corpus, first files and findings, goes through their targets: no atheris is needed for that."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from .targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"


def test_every_target_has_a_corpus_and_it_is_small() -> None:
    assert {folder.name for folder in CORPUS.iterdir()} == set(TARGETS)
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 200_000


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_the_corpus_lets_nothing_out_but_what_is_declared(target: str) -> None:
    for path in sorted((CORPUS / target).iterdir()):
        TARGETS[target](path.read_bytes())


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_neither_does_the_corpus_cut_or_with_flipped_bits(target: str) -> None:
    rng = random.Random(target)
    for path in sorted((CORPUS / target).iterdir()):
        data = path.read_bytes()
        for _ in range(40):
            TARGETS[target](data[: rng.randrange(len(data) + 1)])
            flipped = bytearray(data)
            for _ in range(rng.randrange(1, 4)):
                flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            TARGETS[target](bytes(flipped))
