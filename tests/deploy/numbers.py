"""What the deployment tests measured, each beside its bound."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class _Number:
    what: str
    measured: float
    bound: float
    unit: str
    remark: str


class Numbers:
    """The table of one run."""

    def __init__(self) -> None:
        self._numbers: list[_Number] = []

    def hold(self, what: str, measured: float, bound: float, unit: str = "s", *, remark: str = "") -> None:
        """Note a number, and fail when it is above its bound."""
        self._numbers.append(_Number(what, measured, bound, unit, remark))
        assert measured <= bound, f"{what}: {measured:.2f} {unit}, which should be at most {bound:g} {unit} ({remark})"

    def lines(self) -> list[str]:
        """One for each number."""
        width = max((len(number.what) for number in self._numbers), default=0)
        return [
            f"{number.what:<{width}}  {number.measured:8.2f} {number.unit:<3} at most {number.bound:g}"
            + (f"  ({number.remark})" if number.remark else "")
            for number in self._numbers
        ]
