"""Carbon: grams of CO2 equivalent for joules, at the intensity that a user states with its source.

There is no intensity built in. Grids differ 50-fold between countries and several-fold between hours, so a default
would be wrong nearly everywhere, and would look like a measurement.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autogreen.errors import ConfigError

J_PER_WH = 3600.0
MOST_G_PER_KWH = 2000.0  # above any grid or generator: lignite takes about 1100 (IPCC AR5 WG III, Annex III, 2014)


@dataclass(frozen=True, kw_only=True)
class Carbon:
    """An experiment's `carbon` section.

    g_per_kwh: grams of CO2 equivalent per kilowatt-hour, above 0, at most 2000. source: who says so, and for which
    year: text or an address.
    """

    g_per_kwh: float
    source: str

    def __post_init__(self) -> None:
        if isinstance(self.g_per_kwh, bool) or not 0 < self.g_per_kwh <= MOST_G_PER_KWH:
            raise ConfigError(
                f"g_per_kwh must be above 0 and at most {MOST_G_PER_KWH:.0f} (grams of CO2 equivalent per "
                f"kilowatt-hour), not {self.g_per_kwh!r}"
            )
        if not self.source.strip() or len(self.source.splitlines()) > 1:
            raise ConfigError(
                f"source must say in one line who states the intensity, and for which year, not {self.source!r}"
            )

    @classmethod
    def of(cls, experiment: Mapping[str, Any]) -> "Carbon | None":
        """The intensity of an experiment as a study records it; None where none was configured."""
        stated = experiment.get("carbon")
        return None if stated is None else cls(**stated)

    def emission_g(self, energy_j: float) -> float:
        """Grams of CO2 equivalent that so many joules stand for."""
        return energy_j / (1000 * J_PER_WH) * self.g_per_kwh

    @property
    def words(self) -> str:
        """``380 gCO2e/kWh (source)``."""
        return f"{self.g_per_kwh:g} gCO2e/kWh ({self.source})"
