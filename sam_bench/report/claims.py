"""Claims about the rows of a table, decided by rules that were written before the runs: FOLDER/claims.yaml.

    - claim: RST at 1.5 propagations is equivalent to SAM
      rule: equivalent
      rows: {optimizer: rst, schedule.p: 0.5}
      than: {optimizer: sam}
      margin: 0.5
      seeds: 10

Rules, for the difference d of the mean accuracies of `rows` and `than`, in percentage points:

- better: holds if the 95 % interval of d lies above 0, fails if it lies below 0.
- equivalent: holds if the 90 % interval of d lies within ±margin (two one-sided tests at 5 %: Schuirmann,
  J. Pharmacokinet. Biopharm. 15 (1987) 657), fails if it lies outside.
- not worse: holds if the 90 % interval of d lies above -margin (a one-sided test at 5 %), fails if it lies below.
- decreases: holds if the 95 % interval of Spearman's rank correlation of `sharpness` and accuracy lies below 0 and
  its p is at most 5 %, fails if it lies above 0 with such a p. The points are the means of all matching rows.

If `rows` is one of several candidates, `candidates` is their number. Confirm the best on fresh seeds.

Everything else is undecided. A claim is decided by the first `seeds` seeds of each row, so that further seeds cannot be
added until it holds, and is not decided yet while there are fewer. The intervals of d are Welch's t intervals.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from sam_bench.errors import SettingError, reason
from sam_bench.report.cells import Cell
from sam_bench.report.statistics import LEVEL, Interval, contrast, holm, rank_correlation
from sam_bench.report.tables import SHARPNESS, Table, for_markdown, sharpness, shown_interval
from sam_bench.settings import shown, what_is_wrong

FILE = "claims.yaml"
VERDICTS = {"holds": "Holds", "fails": "Does not hold", "undecided": "Undecided", "incomplete": "Not decided yet"}
WITHIN = 0.9  # level of the interval of the rules with a margin
Selection = dict[str, int | float | bool | str | None]
Selections = Annotated[list[Selection], BeforeValidator(lambda given: [given] if isinstance(given, dict) else given)]


class Claim(BaseModel):
    """An entry of claims.yaml. A selection has names as on the command line and is to match one row of a table.

    A row with another number of epochs than its table is only matched by `trainer.epochs`. If `rows` or `than` are
    lists, the means over their rows are compared.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    claim: str = Field(min_length=1)
    rule: Literal["better", "equivalent", "not worse", "decreases"]
    rows: Selections = Field(min_length=1)
    than: Selections = []
    margin: FiniteFloat = Field(default=0.0, ge=0)
    sharpness: str | None = None
    seeds: int = Field(ge=2)
    candidates: int | None = Field(default=None, ge=2)

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if (self.rule in ("equivalent", "not worse")) != (self.margin > 0):
            raise ValueError("margin: needed by the rules equivalent and not worse, refused by the others")
        if self.rule == "decreases" and self.sharpness not in SHARPNESS:
            raise ValueError(f"sharpness: should be one of {', '.join(SHARPNESS)} for the rule decreases")
        if self.rule != "decreases" and self.sharpness is not None:
            raise ValueError(f"sharpness: belongs to the rule decreases, and this is {self.rule}")
        if (self.rule == "decreases") == bool(self.than):
            raise ValueError("than: needed by every rule but decreases, which takes none")
        return self

    @property
    def level(self) -> float:
        """Of the interval that decides."""
        return WITHIN if self.margin else LEVEL


@dataclass(frozen=True)
class Decision:
    """A claim in a table.

    Attributes:
        verdict: holds, fails, undecided, or incomplete while seeds are missing.
        interval: of the difference in percentage points, or of the rank correlation.
        n: seeds of each row, or rows.
        p: p-value of the rule's test; `corrected`: with Holm's correction for all claims of a page.
    """

    claim: Claim
    panel: str
    verdict: Literal["holds", "fails", "undecided", "incomplete"]
    interval: Interval
    n: str
    p: float
    corrected: float = math.nan

    @property
    def sentence(self) -> str:
        """What was found."""
        claim, interval = self.claim, self.interval
        what = "Spearman's rank correlation" if claim.rule == "decreases" else "difference in percentage points"
        found = f"{what} {shown_interval(interval, True)}"
        if not math.isinf(interval.low):
            found += f" ({100 * claim.level:.0f} % interval)"
        margin = f", margin ±{claim.margin:g}" if claim.rule == "equivalent" else ""
        margin = f", margin -{claim.margin:g}" if claim.rule == "not worse" else margin
        p = "" if math.isnan(self.p) else f", p = {_p(self.p)}"
        if not math.isnan(self.corrected):
            p += f" (after Holm's correction {_p(self.corrected)})"
        begin = VERDICTS[self.verdict]
        if self.verdict == "incomplete":
            begin += f", {claim.seeds} seeds are planned"
        if self.verdict == "holds" and self.corrected > 1 - LEVEL:
            begin += " by itself, but not after Holm's correction for all claims"
        of = f" One of {claim.candidates} candidates; the choice among them is not accounted for."
        return f"{begin}: {found}{margin}, {self.n}{p}.{of if claim.candidates else ''}"


def read(folder: Path) -> list[Claim]:
    """The rules of a folder of runs; none without a file. Raises a SettingError if the file is wrong."""
    path = folder / FILE
    if not path.is_file():
        return []
    try:
        entries = yaml.safe_load(path.read_text())
        if not isinstance(entries, list):
            raise SettingError(f"{path}: should be a list of claims")
    except (OSError, yaml.YAMLError, ValueError) as error:
        raise SettingError(f"{path}: {reason(error)}") from error
    claims = []
    for number, entry in enumerate(entries, 1):
        try:
            claims.append(Claim.model_validate(entry))
        except ValidationError as error:
            where = ".".join(map(str, error.errors(include_url=False)[0]["loc"]))
            what = ": ".join(filter(None, [where, what_is_wrong(error)]))
            raise SettingError(f"{path}: claim {number}: {what}") from error
    return claims


def decide(claims: Sequence[Claim], tables: Sequence[Table]) -> list[Decision]:
    """The claims in each table that has their rows, with Holm's correction for all of them.

    Raises a SettingError if a selection matches several rows.
    """
    found = [each for claim in claims for table in tables if (each := _decide(claim, table))]
    tested = [i for i, each in enumerate(found) if not math.isnan(each.p)]
    for i, p in zip(tested, holm([found[i].p for i in tested]), strict=True):
        found[i] = replace(found[i], corrected=p)
    return found


def without_runs(claims: Sequence[Claim], decisions: Sequence[Decision]) -> list[Claim]:
    """The claims that no table has the rows of."""
    return [claim for claim in claims if all(each.claim is not claim for each in decisions)]


def markdown(decisions: Sequence[Decision]) -> str:
    """The claims and what was found, one list per panel; nothing without claims."""
    parts = []
    for panel in dict.fromkeys(each.panel for each in decisions):
        mine = [each for each in decisions if each.panel == panel]
        lines = [f"- {for_markdown(each.claim.claim)}. {for_markdown(each.sentence)}" for each in mine]
        parts.append("\n".join([f"**Claims: {for_markdown(panel)}**", "", *lines]))
    return "\n\n".join(parts)


def _decide(claim: Claim, table: Table) -> Decision | None:
    if claim.rule == "decreases":
        return _trend(claim, table)
    sides = [[_one_row(claim, each, table) for each in side] for side in (claim.rows, claim.than)]
    if any(row is None for side in sides for row in side):
        return None
    indices = [row for side in sides for row in side]
    if len(set(indices)) < len(indices):
        raise SettingError(f"{FILE}: {claim.claim!r}: `rows` and `than` should be different rows, each given once")
    of, than = ([_first(claim, table.panel.accuracies[row]) for row in side if row is not None] for side in sides)
    difference = contrast(of, than)
    sizes = sorted({len(cell) for cell in [*of, *than]})
    n = f"n = {sizes[0]} each" if len(sizes) == 1 else f"n = {sizes[0]} to {sizes[-1]}"
    interval, margin = difference.interval(claim.level), claim.margin
    if claim.rule == "better":
        holds, fails, p = interval.low > 0, interval.high < 0, 2 * min(difference.p_above(0), difference.p_below(0))
    elif claim.rule == "equivalent":
        holds = -margin < interval.low and interval.high < margin
        fails = interval.low > margin or interval.high < -margin
        p = max(difference.p_above(-margin), difference.p_below(margin))
    else:
        holds, fails, p = interval.low > -margin, interval.high < -margin, difference.p_above(-margin)
    return _decision(claim, table, holds, fails, interval, n, p, sizes[0])


def _first(claim: Claim, by_seed: dict[int, float]) -> list[float]:
    """The values of the seeds that decide the claim."""
    return [by_seed[seed] for seed in sorted(by_seed)[: claim.seeds]]


def _trend(claim: Claim, table: Table) -> Decision | None:
    rows = [i for i, row in enumerate(table.rows) if any(_matches(each, row.cell) for each in claim.rows)]
    measured = [
        (_first(claim, measures), _first(claim, table.panel.accuracies[i]))
        for i in rows
        if (measures := sharpness(table.rows[i].cell, str(claim.sharpness), table.panel.sharpness))
    ]
    if len(measured) < 5:  # of four, no order has a p below 5 %
        return None
    means = [[sum(values) / len(values) for values in pair] for pair in measured]
    interval, p = rank_correlation([x for x, _ in means], [y for _, y in means])
    fewest = min(len(values) for pair in measured for values in pair)
    is_clear, n = p <= 1 - LEVEL, f"n = {len(means)} rows"
    return _decision(
        claim, table, is_clear and interval.high < 0, is_clear and interval.low > 0, interval, n, p, fewest
    )


def _decision(
    claim: Claim, table: Table, holds: bool, fails: bool, interval: Interval, n: str, p: float, fewest: int
) -> Decision:
    verdict: Any = "holds" if holds else "fails" if fails else "undecided"
    if fewest < claim.seeds:
        verdict, p = "incomplete", math.nan
    return Decision(claim, table.panel.title, verdict, interval, n, p)


def _one_row(claim: Claim, selection: Selection, table: Table) -> int | None:
    """The index of the row that a selection matches; None if there is none."""
    found = [i for i, row in enumerate(table.rows) if _matches(selection, row.cell)]
    if len(found) > 1:
        text = ", ".join(f"{name}: {shown(value)}" for name, value in selection.items())
        labels = ", ".join(table.rows[i].label for i in found[:4])
        raise SettingError(f"{FILE}: {claim.claim!r}: {{{text}}} should match one row, but matches {labels}")
    return found[0] if found else None


def _matches(selection: Selection, cell: Cell) -> bool:
    if cell.length != 1 and "trainer.epochs" not in selection:
        return False
    return all(cell.settings.get(_full(name)) == value for name, value in selection.items())


def _full(name: str) -> str:
    """`schedule.p` and `optimizer/inner` of the command line as they stand in a resolved configuration."""
    name = f"optimizer.{name}" if name.split(".")[0] == "schedule" else name.replace("/", ".")
    group = name in ("optimizer", "optimizer.base", "optimizer.inner", "optimizer.schedule", "dataset", "model")
    return f"{name}.name" if group else name


def _p(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"
