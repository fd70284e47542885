"""Report: one page that tells what a study found, to whoever was not there.

    in short        what the knee saves and loses, what the search cost          half a minute
    front           the picture with its error bars, and its members
    layers          what each member does to each layer: rows are layers, columns are members
    joules          which layers they go to, before and after
    bill            what the search cost by purpose, and after how many items that is paid back
    compared with   references and controls, and what they beat
    how             hardware, versions, method, warnings
    again           commands, the experiment and each policy, to be copied

Two studies side by side have a page of the same look (`sides`).

One file of HTML: no script, no address outside (its own content security policy allows neither), readable on a phone,
printable. Every figure of energy stands beside its tier.
"""

from autogreen.report.page import html, write
from autogreen.report.sides import write_sides

__all__ = ["html", "write", "write_sides"]
