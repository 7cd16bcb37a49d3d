"""The light half of the recipe `gan`: names, checks and rules; no torch."""

from __future__ import annotations

from collections.abc import Mapping

from histofed.base.ids import Json
from histofed.recipes.contract import Demands, ServerRule, Workshop
from histofed.recipes.gan.config import GanConfig
from histofed.recipes.sections import parse_section


class GanRecipe:
    """Shared `generator.*` and, as configured, `discriminator.*`; server `ema.*`; private: the rest, and moments."""

    name = "gan"
    release = "server"

    def parse(self, section: Mapping[str, Json]) -> GanConfig:
        """The table, checked. Raises `BadData`."""
        return parse_section(GanConfig, section)

    def demands(self, section: Mapping[str, Json]) -> Demands:
        """Both networks, the file of weights that the site would open, the tiles' size and classes, and the steps."""
        config = self.parse(section)
        weights = config.discriminator.weights
        return Demands(
            models=(
                f"generator:{config.generator}",
                f"discriminator:{config.discriminator.name}",
                *((f"weights:{weights.sha256}",) if weights else ()),
            ),
            image_size=config.image_size,
            classes=config.classes,
            steps=config.steps,
        )

    def shared_names(self, section: Mapping[str, Json]) -> tuple[str, ...]:
        """The networks that are shared."""
        return tuple(f"{network}." for network in self.parse(section).share.split("+"))

    def server_rules(self, section: Mapping[str, Json], shared: tuple[str, ...]) -> tuple[ServerRule, ...]:
        """`ema.NAME` follows `generator.NAME`; a discriminator is never released, so nothing follows it."""
        decay = self.parse(section).ema_decay
        return tuple(
            ServerRule("ema." + name.removeprefix("generator."), name, decay)
            for name in shared
            if name.startswith("generator.")
        )

    def workshop(self) -> Workshop:
        """Imports torch: call it in a child process only."""
        from histofed.recipes.gan.workshop import GanWorkshop

        return GanWorkshop()
