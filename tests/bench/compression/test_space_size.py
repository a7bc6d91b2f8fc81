import pytest
from torch import nn

from bench.compression.shapes import trace
from bench.compression.space_size import count, in_words, policies


def network(group_size: int = 4) -> nn.Module:
    """A stem, a layer with 6 prunable filters, one that reads them, one whose filters are added, a classifier."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 8, 1),
        nn.Flatten(),
        nn.Linear(128, 5),
    )
    model.group_size = group_size  # type: ignore[assignment]
    return model


@pytest.mark.parametrize(
    ("own", "asked", "candidates", "expected"),
    [
        (4, None, (2, 4, 8), (9 * 2) * 9),  # 6 filters are two groups of 4; the stem and the classifier do not count
        (2, None, (2, 4, 8), (9 * 3) * 9),
        (4, 1, (2, 4, 8), (9 * 6) * 9),
        (4, 6, (2, 8), 4 * 4),
        (4, 100, (8,), 1),
    ],
)
def test_policies_by_hand(own: int, asked: int | None, candidates: tuple[int, ...], expected: int) -> None:
    shape = trace(network(own), (3, 8, 8), name="hand", dataset="none")
    assert [layer.prunable for layer in shape.layers] == [False, True, False, False]
    assert policies(shape, candidates, asked) == expected


def test_the_papers_figure_for_resnet18() -> None:
    """18 layers without those of the shortcuts, groups of 16 in every convolution, one for the classifier."""
    groups = [4, *[4] * 4, *[8] * 4, *[16] * 4, *[32] * 4, 1]
    assert count(groups, 3) == 9**18 * 4 * 2**56
    assert in_words(count(groups, 3)) == "4.3 × 10^34"


@pytest.mark.parametrize(
    ("number", "words"),
    [(1, "1"), (10_000, "10,000"), (12_345, "1.2 × 10^4"), (99_999, "1.0 × 10^5"), (9**500, "1.3 × 10^477")],
)
def test_large_numbers_in_words(number: int, words: str) -> None:
    assert in_words(number) == words
