"""Leases of graphics cards: which process computes on which card, over all commands that share a store."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bench.leases import Heartbeat, Leases

_PAUSE_SECONDS = 0.5


def visible_cards() -> list[str]:
    """The cards that this process may use, as entries for CUDA_VISIBLE_DEVICES."""
    import torch

    count = torch.cuda.device_count()
    named = [entry.strip() for entry in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if entry.strip()]
    return named[:count] if named else [str(index) for index in range(count)]


def cards_for(device: str, cards: list[str]) -> list[str]:
    """The cards that a specification's device stands for: one by number, or any."""
    _, _, number = device.partition(":")
    return [cards[int(number)]] if number else cards


@contextmanager
def card_lease(
    leases: Leases, device: str, runs_per_card: int, title: str, stop: Callable[[], bool]
) -> Iterator[str | None]:
    """Hold a place on a card while the block runs; the card is `None` without one, or when the study stops.

    Args:
        leases: Of the store.
        device: Of the specification.
        runs_per_card: Places on each card.
        title: What the card is for.
        stop: Whether to give up waiting for a place.
    """
    if not device.startswith("cuda"):
        yield None
        return
    places = [(card, place) for place in range(runs_per_card) for card in cards_for(device, visible_cards())]
    while not stop():
        for card, place in places:
            lease = leases.acquire(f"card-{socket.gethostname()}-{card}-{place}", title)
            if lease is not None:
                with Heartbeat(lease, _ignore):
                    yield card
                return
        time.sleep(_PAUSE_SECONDS)
    yield None


def _ignore() -> None:
    """A card's lease that was taken over: two processes share the card for a while, which costs time only."""
