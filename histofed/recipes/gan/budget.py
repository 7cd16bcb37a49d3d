"""How many steps one call may take of a plan that may be longer."""

from __future__ import annotations

from histofed.recipes.contract import Stop


class Budget:
    """Stops the loop on request, or when it has taken as many steps as it was given; None is no bound."""

    def __init__(self, stop: Stop, most: int | None) -> None:
        self._stop, self._most = stop, most
        self.taken = 0
        self.spent = False

    def __call__(self) -> bool:
        self.spent = self._most is not None and self.taken >= self._most
        return self.spent or self._stop()
