"""One explanation: whose, of what, and as words and numbers."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from regkit.inference.explain.evidence import Evidence, Film, Questions
from regkit.inference.explain.survived import AXES, First, Survived
from regkit.training.checkpoints import TrainedRun

COLOURS = ("red", "green", "blue")
UNIT = "nats of log-odds, log p / (1 - p)"


@dataclass(frozen=True)
class Untrained:
    """How an explanation compares with those of the net with first weights.

    spans: the curve of each draw.
    agreement: rank correlation of each with the trained net's; None where one is flat.
    """

    spans: list[list[float]]
    agreement: list[float | None]


@dataclass(frozen=True, eq=False)
class Explanation:
    """What carried the decision on one clip of a film."""

    held: TrainedRun
    film: Film
    questions: Questions
    evidence: Evidence
    survived: Survived
    untrained: Untrained | None = None

    @property
    def classes(self) -> list[str]:
        """Name the classes."""
        return self.held.model.classes

    @property
    def predicted(self) -> int:
        """Return the class with the highest probability."""
        return int(self.evidence.probabilities.argmax())


def as_json(explanation: Explanation) -> dict[str, Any]:
    """Return all numbers as plain values."""
    e, evidence, film = explanation, explanation.evidence, explanation.film
    return {
        "checkpoint": str(e.held.path),
        "shrunk": e.held.shrunk,
        "video": film.video.path,
        "start_s": film.video.start_s,
        "end_s": film.video.end_s,
        "predicted": e.classes[e.predicted],
        "explained": e.classes[evidence.target],
        "probabilities": dict(zip(e.classes, evidence.probabilities.tolist(), strict=True)),
        "log_odds": evidence.log_odds,
        "unit": f"drop: {UNIT}, lost without that part; below 0: gained",
        "questions": asdict(e.questions) | {"span": evidence.span},
        "frames_s": film.times_s.tolist(),
        "spans": [_span(e, start) for start in range(len(evidence.spans))],
        "strongest": [_span(e, start) for start in evidence.strongest],
        "channels": dict(zip(COLOURS, evidence.channels.tolist(), strict=True)),
        "places": evidence.places.tolist(),
        "order": asdict(evidence.order) | {"shuffled_mean": evidence.order.shuffled_mean},
        "untrained": None if e.untrained is None else asdict(e.untrained),
        "weights": _weights(e.survived),
    }


def _span(explanation: Explanation, start: int) -> dict[str, float | int]:
    evidence = explanation.evidence
    from_s, to_s = explanation.film.part_s(start, evidence.span)
    drop = float(evidence.spans[start])
    return {
        "first_frame": start,
        "from_s": from_s,
        "to_s": to_s,
        "drop": drop,
        "probability_without": evidence.probability(drop),
    }


def _weights(survived: Survived) -> dict[str, Any]:
    return {
        "first": None if survived.first is None else _first(survived.first),
        "layers": [
            {
                "name": layer.name,
                "live": layer.live,
                "of": layer.num,
                "what": "hidden units" if layer.recurrent else "output channels",
                "taps": layer.taps.tolist(),
                "tap_norms": layer.tap_norms.tolist(),
            }
            for layer in survived.layers
        ],
    }


def _first(first: First) -> dict[str, Any]:
    by_axis = {
        axis: {"live": first.live(axis).tolist(), "norm": first.norm(axis).tolist()}
        for axis in AXES
    }
    return {"name": first.name, **by_axis}


def as_text(explanation: Explanation) -> str:
    """Return what is to be known at once, as a table."""
    evidence, film = explanation.evidence, explanation.film
    target = explanation.classes[evidence.target]
    predicted = explanation.classes[explanation.predicted]
    rows = [("predicted", predicted, "", f"{evidence.probabilities.max():.1%}")]
    if evidence.target != explanation.predicted:
        rows.append(("explained", target, "", f"{evidence.probability():.1%}"))
    for number, start in enumerate(evidence.strongest, start=1):
        from_s, to_s = film.part_s(start, evidence.span)
        part = f"{from_s:.2f}-{to_s:.2f} s"
        rows.append(_row(evidence, f"span {number}", part, float(evidence.spans[start])))
    for colour, drop in zip(COLOURS, evidence.channels.tolist(), strict=True):
        rows.append(_row(evidence, "colour", colour, drop))
    row, column = divmod(int(np.abs(evidence.places).argmax()), evidence.places.shape[1])
    place = f"row {row + 1}, column {column + 1}"
    rows.append(_row(evidence, "place", place, float(evidence.places[row, column])))
    order = evidence.order
    rows.append(_row(evidence, "order", "backwards", order.reversed))
    rows.append(_row(evidence, "order", "shuffled", order.shuffled_mean))
    rows.append(_row(evidence, "motion", "standing still", order.still))
    lines = [str(film.video), *_laid_out([("", "", "drop", "p"), *rows])]
    if not evidence.strongest:
        lines.append("no span of time carries the class: without any of them it loses nothing")
    return "\n".join([*lines, *_on_weights(explanation), *_on_untrained(explanation)])


def _row(evidence: Evidence, kind: str, what: str, drop: float) -> tuple[str, str, str, str]:
    return kind, what, f"{drop:+z.2f}", f"{evidence.probability(drop):.1%}"


def _laid_out(rows: list[tuple[str, str, str, str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        f"  {kind:<{widths[0]}}  {what:<{widths[1]}}  {drop:>{widths[2]}}  {p:>{widths[3]}}"
        for kind, what, drop, p in rows
    ]


def _on_weights(explanation: Explanation) -> list[str]:
    survived = explanation.survived
    cut = " (dead ones are cut out already)" if explanation.held.shrunk else ""
    live, num = (sum(getattr(x, name) for x in survived.layers) for name in ("live", "num"))
    lines = [f"weights: {live} of {num} output channels and hidden units live{cut}"]
    if survived.first is not None:
        taps = survived.first.live("taps")
        colours = survived.first.live("channels")
        lines.append(
            f"  {survived.first.name} reads {int((colours > 0).sum())} of {len(colours)} colours, "
            f"{int((taps > 0).sum())} of {len(taps)} time steps"
        )
    return lines


def _on_untrained(explanation: Explanation) -> list[str]:
    if explanation.untrained is None:
        return []
    shown = ["flat" if a is None else f"{a:+.2f}" for a in explanation.untrained.agreement]
    return [f"rank correlation with the curves of untrained nets: {', '.join(shown)}"]
