"""Leases of graphics cards: which process computes on which cards, over all commands that share a store."""

import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from bench.errors import BenchError
from bench.store.leases import Heartbeat, Lease, Leases

_PAUSE_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuRequest:
    """What a run needs.

    Attributes:
        device: Of the specification.
        cards: Different cards of one host.
        runs_per_card: Runs that may share a card.
    """

    device: str
    cards: int = 1
    runs_per_card: int = 1


def visible_cards() -> list[str]:
    """The cards that this process may use, as entries for CUDA_VISIBLE_DEVICES."""
    import torch

    count = torch.cuda.device_count()
    named = [entry.strip() for entry in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if entry.strip()]
    return named[:count] if named else [str(index) for index in range(count)]


def cards_for(device: str, cards: list[str]) -> list[str]:
    """The cards that a specification's device stands for: one by number, or any."""
    _, _, number = device.partition(":")
    return cards[int(number) : int(number) + 1] if number else cards


@contextmanager
def gpu_lease(leases: Leases, needed: GpuRequest, title: str, stop: Callable[[], bool]) -> Iterator[str | None]:
    """Hold a place on each of the cards that a run needs while the block runs.

    Args:
        leases: Of the store.
        needed: What is needed.
        title: What the cards are for.
        stop: Whether to give up waiting for them.

    Yields:
        The cards, for CUDA_VISIBLE_DEVICES; `None` when none are needed, or when the study stops.

    Raises:
        BenchError: This machine has fewer cards.
    """
    if not needed.device.startswith("cuda"):
        yield None
        return
    cards = cards_for(needed.device, visible_cards())
    if len(cards) < needed.cards:
        raise BenchError(
            f"'{needed.device}' with --devices {needed.cards} is not there: {socket.gethostname()} has "
            f"{len(visible_cards())} CUDA devices; use fewer, or --device cpu"
        )
    while not stop():
        held = _all_or_none(leases, cards, needed, title)
        if held:
            with ExitStack() as beating:
                for lease in held.values():
                    beating.enter_context(Heartbeat(lease, _ignore))
                yield ",".join(held)
            return
        time.sleep(_PAUSE_SECONDS * random.uniform(1, 2))  # noqa: S311  (two that collide should not do so again)
    yield None


def _all_or_none(leases: Leases, cards: list[str], needed: GpuRequest, title: str) -> dict[str, Lease]:
    """A place on each of so many cards, by card, or nothing: nobody waits with a card in hand, so nobody is stuck.

    Those who need several gather one after the other; otherwise two might take half each, for ever.
    """
    if needed.cards == 1:
        return _gathered(leases, cards, needed, title)
    turn = leases.acquire(f"cards-{socket.gethostname()}", title)
    if turn is None:
        return {}
    with turn:
        held = _gathered(leases, cards, needed, title)
    if len(held) == needed.cards:
        return held
    for lease in held.values():
        lease.release()
    return {}


def _gathered(leases: Leases, cards: list[str], needed: GpuRequest, title: str) -> dict[str, Lease]:
    """As many places on different cards as are needed and free; first the cards that nobody uses."""
    held: dict[str, Lease] = {}
    for place in range(needed.runs_per_card):
        for card in cards:
            if card in held:
                continue
            lease = leases.acquire(f"card-{socket.gethostname()}-{card}-{place}", title)
            if lease is not None:
                held[card] = lease
            if len(held) == needed.cards:
                return held
    return held


def _ignore() -> None:
    """A card's lease that was taken over: two processes share the card for a while, which costs time only."""
