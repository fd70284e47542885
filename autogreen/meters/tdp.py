"""Processors by name: what the vendor says they are built to dissipate, and over how many threads.

A machine's "model name" (/proc/cpuinfo) is looked for in `PROCESSORS`, from top to bottom. An entry is one model with
its vendor's own figures; its pattern also takes models next to it whose watts per thread differ by less than 40 %, and
the variants that clouds have made for themselves (Xeon Platinum 8375C, EPYC 7R13), of which no figures are published.

Sources: Intel, product specifications (ark.intel.com), and AMD, processor specifications (amd.com), both read in
November 2026 as exported into the data sets of CodeCarbon (github.com/mlco2/codecarbon, codecarbon/data/hardware); the
export of Intel's leaves the threads out: two a core, Hyper-Threading. VENDOR: the vendor's specification of that very
model, not looked up again. Left out: Apple M and AWS Graviton (no TDP is published), Ampere (Linux shows the kind of
core, not the model), Intel's hybrid Core (its cores differ), EPYC sold with one thread a core.
"""

import re
from dataclasses import dataclass
from pathlib import Path

ARK, AMD, VENDOR = "Intel ARK", "AMD processor specifications", "vendor specification"


@dataclass(frozen=True, kw_only=True)
class Processor:
    """One model. names: regular expression on the "model name". tdp_w: thermal design power of the package, in watts,
    at default settings. cores, threads: of the package."""

    names: str
    model: str
    tdp_w: float
    cores: int
    threads: int
    source: str

    @property
    def thread_w(self) -> float:
        """Watts of the package per thread, all of them busy."""
        return self.tdp_w / self.threads

    def __str__(self) -> str:
        return f"{self.model} ({self.tdp_w:g} W, {self.threads} threads; {self.source})"


def _of(names: str, model: str, tdp_w: float, cores: int, threads: int, source: str) -> Processor:
    return Processor(names=names, model=model, tdp_w=tdp_w, cores=cores, threads=threads, source=source)


PROCESSORS = (
    # Intel Xeon: 6, Scalable of the 5th, 4th, 3rd, 2nd and 1st generation
    _of(r"Xeon\(R\) 69(79|80)P", "Intel Xeon 6980P", 500, 128, 256, ARK),
    _of(r"Platinum 85[789]\d", "Intel Xeon Platinum 8592+", 350, 64, 128, ARK),
    _of(r"Platinum 84(61|68|7\d|8\d|90)", "Intel Xeon Platinum 8480+", 350, 56, 112, ARK),
    _of(r"Gold 64(30|38|48|54S)", "Intel Xeon Gold 6448Y", 225, 32, 64, ARK),
    _of(r"Platinum 83[5678]\d(?!H)", "Intel Xeon Platinum 8380", 270, 40, 80, ARK),
    _of(r"Gold 63(30|36Y|38|48)", "Intel Xeon Gold 6338", 205, 32, 64, ARK),
    _of(r"Platinum 82(53|59|[67]\d|80)", "Intel Xeon Platinum 8280", 205, 28, 56, VENDOR),
    _of(r"Gold 62(30|38|48|52)", "Intel Xeon Gold 6230", 125, 20, 40, ARK),
    _of(r"Platinum 81(53|[67]\d|80)", "Intel Xeon Platinum 8180", 205, 28, 56, ARK),
    _of(r"Gold 61(30|38|40|48|50|52)", "Intel Xeon Gold 6148", 150, 20, 40, ARK),
    # AMD EPYC: 9005, 9004, 7003, 7002, 7001
    _of(r"EPYC 9(825|845|965)", "AMD EPYC 9965", 500, 192, 384, AMD),
    _of(r"EPYC 9(645|655|745|755)", "AMD EPYC 9755", 500, 128, 256, AMD),
    _of(r"EPYC 95(34|35|54|55|65|75F)", "AMD EPYC 9554", 360, 64, 128, AMD),
    _of(r"EPYC 97[35]4(?!S)", "AMD EPYC 9754", 360, 128, 256, AMD),
    _of(r"EPYC 9(634|654|684X)", "AMD EPYC 9654", 360, 96, 192, AMD),
    _of(r"EPYC 7(643|663|713|763|773X|[BRV]13)", "AMD EPYC 7763", 280, 64, 128, AMD),
    _of(r"EPYC 7(413|443|453|513|542|543)", "AMD EPYC 7543", 225, 32, 64, AMD),
    _of(r"EPYC 73(03|13|43)", "AMD EPYC 7313", 155, 16, 32, AMD),
    _of(r"EPYC 7(552|642|662|702|742|H12|[BV]12|R32)", "AMD EPYC 7742", 225, 64, 128, AMD),
    _of(r"EPYC 7(551|571|601)", "AMD EPYC 7601", 180, 32, 64, VENDOR),
    # Desktop and laptop
    _of(r"Ryzen AI 9 HX (PRO )?37[05]", "AMD Ryzen AI 9 HX 370", 28, 12, 24, AMD),
    _of(r"Ryzen 9 [79]9[05]0X", "AMD Ryzen 9 7950X", 170, 16, 32, VENDOR),
    _of(r"Ryzen 9 [35]9[05]0X", "AMD Ryzen 9 5950X", 105, 16, 32, VENDOR),
    _of(r"Ryzen 7 (3700X|5700[XG])", "AMD Ryzen 7 5700X", 65, 8, 16, VENDOR),
    _of(r"i[79]-(9900|10700|11700|11900)\b", "Intel Core i7-11700", 65, 8, 16, ARK),
    _of(r"i7-(8750H|9750H|10750H)", "Intel Core i7-10750H", 45, 6, 12, ARK),
    _of(r"i[57]-(8[2356]50U|8[36]65U|10[25]10U|1035G[147]|1065G7)", "Intel Core i7-8550U", 15, 4, 8, ARK),
)


def match(name: str | None) -> Processor | None:
    """The entry for a "model name", or None: unknown, or too generic (many virtual machines say only "AMD EPYC")."""
    return next((found for found in PROCESSORS if name and re.search(found.names, name, re.IGNORECASE)), None)


def model_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """What Linux calls the processor; None where it does not say (another system, ARM)."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
