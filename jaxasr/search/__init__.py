"""Encoded frames to token sequences: the table of searches with their configurations, and how one is chosen."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import jax

from jaxasr.configuration import Table
from jaxasr.encoders import EncoderConfig
from jaxasr.search.beam import JointBeam, TransducerBeam
from jaxasr.search.greedy import CTCGreedy, TransducerGreedy
from jaxasr.search.parallel import ParallelSearch, StreamedParallelSearch
from jaxasr.search.protocols import Search, StreamedParallelHead, StreamingSearch

# Hypotheses that a search with several of them keeps where nobody says how many.
DEFAULT_BEAM = 4


@runtime_checkable
class HeadConfig(Protocol):
    """What every head's configuration answers, whatever its role."""

    @property
    def vocabulary_size(self) -> int: ...

    @property
    def blank_id(self) -> int: ...

    def fault(self, encoder: EncoderConfig) -> str | None:
        """Why it cannot stand on this encoder; None where it can."""
        ...


@runtime_checkable
class SearchConfig(Protocol):
    """What a search's configuration answers. Heads are named by their role in a model."""

    @property
    def kind(self) -> str: ...

    @property
    def beam(self) -> int:
        """Hypotheses that it keeps."""
        ...

    @property
    def head(self) -> str | None:
        """The role of the head whose tokens it finds; None for a model's first."""
        ...

    def fault(self, heads: Mapping[str, HeadConfig]) -> str | None:
        """Why it cannot search a model with these heads, by role; None where it can."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class GreedyConfig:
    """The best token, frame by frame."""

    kind: Literal["greedy"] = "greedy"
    head: str | None = None

    @property
    def beam(self) -> int:
        """One hypothesis."""
        return 1

    def fault(self, heads: Mapping[str, HeadConfig]) -> str | None:
        """The head must be there."""
        role = searched_head(self, heads)
        return None if role in heads else f"there is no {role} head"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BeamConfig:
    """A transducer's beam search, which keeps `beam` hypotheses."""

    kind: Literal["beam"] = "beam"
    beam: int = DEFAULT_BEAM
    head: Literal["transducer"] = "transducer"

    def __post_init__(self) -> None:
        if self.beam < 1:
            raise ValueError(f"a beam search needs a beam of 1 or more, not {self.beam}")

    def fault(self, heads: Mapping[str, HeadConfig]) -> str | None:
        """There must be a transducer."""
        return None if self.head in heads else "a beam search needs a transducer head"


@dataclasses.dataclass(frozen=True, kw_only=True)
class JointConfig:
    """A transducer's beam search, ranked by a CTC head too, which counts for `ctc_weight` in 0..1."""

    kind: Literal["joint"] = "joint"
    beam: int = DEFAULT_BEAM
    ctc_weight: float = 0.5

    def __post_init__(self) -> None:
        if self.beam < 2:  # with one there is nothing to rank
            raise ValueError(f"a joint search needs a beam of 2 or more, not {self.beam}")
        if not 0 <= self.ctc_weight <= 1:
            raise ValueError(f"ctc_weight must lie in 0..1, not {self.ctc_weight}")

    @property
    def head(self) -> str:
        """The role of the head whose tokens are ranked."""
        return "transducer"

    def fault(self, heads: Mapping[str, HeadConfig]) -> str | None:
        """There must be both heads, with one vocabulary and one blank."""
        both = [heads[role] for role in ("transducer", "ctc") if role in heads]
        sizes = {(head.vocabulary_size, head.blank_id) for head in both}
        fits = len(both) == 2 and len(sizes) == 1
        return None if fits else "a joint search needs two heads of one vocabulary"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParallelSearchConfig:
    """All tokens of an utterance at once, by a parallel head: the `beam` best texts."""

    kind: Literal["parallel"] = "parallel"
    beam: int = 1
    head: Literal["parallel"] = "parallel"

    def __post_init__(self) -> None:
        if self.beam < 1:
            raise ValueError(f"a parallel search needs a beam of 1 or more, not {self.beam}")

    def fault(self, heads: Mapping[str, HeadConfig]) -> str | None:
        """There must be a parallel head."""
        return None if self.head in heads else "a parallel search needs a parallel head"


def _greedy(config: GreedyConfig, heads: Mapping[str, Any], blank_penalty: jax.Array | float) -> Search[Any]:
    role = searched_head(config, heads)
    if role == "ctc":
        return CTCGreedy(heads[role], blank_penalty)
    if role == ParallelSearchConfig.head:
        return ParallelSearch(heads[role], 1, blank_penalty)
    return TransducerGreedy(heads[role], blank_penalty)


def _beam(config: BeamConfig, heads: Mapping[str, Any], blank_penalty: jax.Array | float) -> Search[Any]:
    return TransducerBeam(heads[config.head], config.beam, blank_penalty)


def _joint(config: JointConfig, heads: Mapping[str, Any], blank_penalty: jax.Array | float) -> Search[Any]:
    transducer = TransducerBeam(heads[config.head], config.beam, blank_penalty)
    return JointBeam(transducer, heads["ctc"], config.ctc_weight)


def _parallel(config: ParallelSearchConfig, heads: Mapping[str, Any], blank_penalty: jax.Array | float) -> Search[Any]:
    return ParallelSearch(heads[config.head], config.beam, blank_penalty)


# Every search by its `kind`: made as (config, head modules by role, blank_penalty).
SEARCHES: Table[Search[Any]] = Table(
    {
        "greedy": (GreedyConfig, _greedy),
        "beam": (BeamConfig, _beam),
        "joint": (JointConfig, _joint),
        "parallel": (ParallelSearchConfig, _parallel),
    }
)


def streaming_search(
    config: SearchConfig, heads: Mapping[str, Any], blank_penalty: jax.Array | float = 0.0
) -> StreamingSearch[Any] | None:
    """The search of streams that is configured; None where it hears whole recordings only."""
    search = SEARCHES.make(config, heads, blank_penalty)
    if isinstance(search, ParallelSearch):
        head: Any = search.head
        takes_streams = search.beam == 1 and isinstance(head, StreamedParallelHead)
        return StreamedParallelSearch(head, blank_penalty) if takes_streams else None
    return search if isinstance(search, StreamingSearch) else None


def searched_head(search: SearchConfig, heads: Mapping[str, Any]) -> str:
    """The role of the head whose tokens `search` finds among a model's `heads` by role: its own, else the first."""
    return search.head or next(iter(heads))


def choose_search(
    own: SearchConfig, heads: Mapping[str, HeadConfig], kind: str | None, head: str | None, beam: int | None
) -> SearchConfig:
    """The search that a user asks for: of this kind, by this head, with this many hypotheses; each None if unsaid.

    `own` is the model's search; its settings stay unless an argument replaces them. A beam alone changes how many
    hypotheses are kept, and makes a beam search of a greedy one; a beam of 1 is greedy search, but a parallel search
    stays one. A head alone is searched by itself. Raises ValueError for what cannot be.
    """
    if kind is not None and kind not in SEARCHES:
        raise ValueError(f"search {kind!r} is none of {', '.join(SEARCHES)}")
    if head is not None and head not in heads:
        raise ValueError(f"there is no {head} head: take {' or '.join(heads)}")
    kind = kind or _kind(own, heads, head, beam)
    cls, _ = SEARCHES[kind]
    chosen = own if own.kind == kind else cls()
    changes: dict[str, Any] = {}
    if kind == "greedy":
        if beam not in (None, 1):
            raise ValueError("a greedy search keeps one hypothesis: leave out beam")
        changes = {} if head is None else {"head": head}
    elif head not in (None, chosen.head):
        raise ValueError(f"a {kind} search is by the {chosen.head} head, not by {head}: leave out head")
    elif beam is not None or own.beam > 1:
        changes = {"beam": own.beam if beam is None else beam}
    wanted: SearchConfig = dataclasses.replace(chosen, **changes)  # type: ignore[type-var]
    if fault := wanted.fault(heads):
        raise ValueError(fault)
    return wanted


def _kind(own: SearchConfig, heads: Mapping[str, HeadConfig], head: str | None, beam: int | None) -> str:
    """The kind of search that a head and a beam without a kind mean."""
    if (head or searched_head(own, heads)) == ParallelSearchConfig.head:
        return ParallelSearchConfig.kind
    if head is None and (beam is None or (own.beam > 1 and beam > 1) or (own.kind == "joint" and beam != 1)):
        return own.kind
    searched = head or own.head
    several = (own.beam if beam is None else beam) != 1
    return "beam" if several and searched in (None, BeamConfig.head) else "greedy"
