"""What this machine can measure and run: which meter, which not, why, and what to do about it."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, get_args

from autogreen import hardware
from autogreen.engines import ENGINES
from autogreen.experiment import pick_device
from autogreen.meters import Diagnosis, diagnose

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class Examination:
    """meters: best tier first; the first available one is what a sweep takes. schemes: for every quantization scheme
    the engines with a real kernel for it, or why there is none."""

    hardware: dict[str, Any]
    meters: tuple[Diagnosis, ...]
    schemes: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def table(self) -> "Table":
        """For a terminal."""
        from rich.table import Table

        table = Table(title=hardware.name(self.hardware), show_lines=True)
        for column in ("", "here", "why", "what to do"):
            table.add_column(column, overflow="fold")
        for meter in self.meters:
            here = f"yes ({meter.tier})" if meter.available else "no"
            table.add_row(f"meter {meter.name}", here, meter.reason, meter.advice)
        for scheme, told in self.schemes.items():
            table.add_row(f"scheme {scheme}", "yes" if told.startswith("engine") else "no", told, "")
        return table


def examine(device: str = "auto") -> Examination:
    """Ask every meter and every scheme."""
    from autogreen.techniques.quantization import Scheme, missing_kernel

    device = pick_device(device)
    schemes = {}
    for scheme in get_args(Scheme):
        reasons = {engine: missing_kernel(scheme, device=device, engine=engine) for engine in ENGINES}
        working = [engine for engine, reason in reasons.items() if reason is None]
        schemes[scheme] = f"engine: {', '.join(working)}" if working else str(next(iter(reasons.values())))
    return Examination(hardware=hardware.describe(device), meters=diagnose(device), schemes=schemes)
