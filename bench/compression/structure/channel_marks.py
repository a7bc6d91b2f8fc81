"""What is known of a tensor's channels while a graph is read: the group that they belong to, and where they are."""

from dataclasses import dataclass, field


@dataclass(eq=False)
class Channels:
    """Channels that are pruned together; they are heads where their number is not 0."""

    producers: list[str] = field(default_factory=list)
    followers: list[str] = field(default_factory=list)
    readers: list[str] = field(default_factory=list)
    norms: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    heads: int = 0
    obstacle: str | None = None
    merged_into: "Channels | None" = None

    def root(self) -> "Channels":
        """Return the group that this one was merged into, or itself."""
        return self if self.merged_into is None else self.merged_into.root()

    @property
    def only_tables(self) -> bool:
        """Whether the channels are those of tables, which no layer produces."""
        return bool(self.tables) and not self.producers

    def block(self, reason: str) -> None:
        """Record why no channel can be pruned; the first reason is kept."""
        root = self.root()
        root.obstacle = root.obstacle or reason

    def unite(self, other: "Channels") -> None:
        """Make one group of two."""
        mine, others = self.root(), other.root()
        if mine is others:
            return
        mine.producers += others.producers
        mine.followers += others.followers
        mine.readers += others.readers
        mine.norms += others.norms
        mine.tables += others.tables
        mine.obstacle = mine.obstacle or others.obstacle
        if mine.heads != others.heads:
            mine.block("heads are combined with other channels")
        others.merged_into = mine


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A tensor's channels, whether it can be negative, the dimension of the channels, and how many make a filter."""

    channels: Channels
    signed: bool
    dimension: int = 1
    repeat: int = 1
