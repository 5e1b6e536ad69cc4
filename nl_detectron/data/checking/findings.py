"""What a check of annotations finds."""

from collections import Counter
from collections.abc import Hashable
from dataclasses import asdict, dataclass, field
from enum import Enum

from ...errors import one_line

EXAMPLES = 5  # of each finding


class Effect(Enum):
    """What training does about a finding, the worst first."""

    STOPS = "stops"
    LEFT_OUT = "left out of training"
    REPAIRED = "corrected; Detectron2 cannot use it as it is"
    CORRECTED = "corrected"
    SUSPICIOUS = "used as it is; look at it"
    FINE = "used as it is"


@dataclass(frozen=True)
class Kind:
    """A kind of finding.

    Attributes:
        of: what has it: file, category, image or annotation.
        what: a noun phrase, such as "box without size".
        effect: see :class:`Effect`.
        advice: what a person can do about one that stops.
    """

    of: str
    what: str
    effect: Effect
    advice: str = ""


@dataclass
class Finding:
    """All findings of a kind.

    Attributes:
        count: how many there are.
        examples: the first few: the id, and what is wrong where that is not plain.
    """

    kind: Kind
    count: int = 0
    examples: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """One line, with the first example: ``annotation 7: box of NaN or infinity: [NaN, ...]``"""
        more = f" ({self.count - 1:,} more)" if self.count > 1 else ""
        advice = f"; {self.kind.advice}" if self.kind.advice else ""
        where, _, detail = self.examples[0].partition(": ")
        detail = f": {detail}" if detail else ""
        return f"{self.kind.of} {where}: {self.kind.what}{detail}{more}{advice}"

    def to_json(self) -> dict:
        return asdict(self) | {"kind": asdict(self.kind) | {"effect": self.kind.effect.name}}

    @classmethod
    def from_json(cls, values: dict) -> "Finding":
        kind = values["kind"]
        return cls(
            Kind(**kind | {"effect": Effect[kind["effect"]]}), values["count"], values["examples"]
        )


class Findings:
    """Collects findings.

    Args:
        max_examples: of each kind, which bounds the memory; None keeps all.
    """

    def __init__(self, max_examples: int | None = EXAMPLES) -> None:
        self.max_examples = max_examples
        self._by_kind: dict[Kind, Finding] = {}
        self.suspicion: Counter[Hashable] = Counter()  # of each image, by its id

    def add(
        self, kind: Kind, where: object, detail: object = None, *, image: object = None
    ) -> None:
        """Counts one.

        Args:
            where: the id of what has it.
            detail: the value that is wrong.
            image: the id of the image that shows it.
        """
        finding = self._by_kind.setdefault(kind, Finding(kind))
        finding.count += 1
        if self.max_examples is None or len(finding.examples) < self.max_examples:
            example = _short(where) + ("" if detail is None else f": {_cut(str(detail))}")
            finding.examples.append(one_line(example))
        if isinstance(image, (int, str)) and kind.effect in WEIGHTS:
            self.suspicion[image] += WEIGHTS[kind.effect]

    def add_annotation(self, kind: Kind, annotation: dict, detail: object = None) -> None:
        """Counts one of an annotation."""
        where, image = annotation.get("id", "without id"), annotation.get("image_id")
        self.add(kind, where, detail, image=image)

    def take(self, other: "Findings") -> None:
        """Takes over the findings of another collection, of other kinds."""
        self._by_kind |= other._by_kind
        self.suspicion.update(other.suspicion)

    def sorted(self) -> list[Finding]:
        """The worst first."""
        order = list(Effect)
        return sorted(self._by_kind.values(), key=lambda f: (order.index(f.kind.effect), f.kind.of))


# How much a finding says for a look at the image
WEIGHTS = {Effect.STOPS: 1000, Effect.SUSPICIOUS: 100, Effect.LEFT_OUT: 20, Effect.REPAIRED: 5}


def _cut(text: str) -> str:
    """The text without its middle where it is long: of a path, the end says the most."""
    return text if len(text) <= 120 else f"{text[:50]}...{text[-67:]}"


def _short(value: object) -> str:
    """One line of a value that may be anything."""
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
