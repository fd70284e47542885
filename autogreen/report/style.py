"""The page's one style sheet: dark on white, blue for what is told apart, nothing fetched."""

CSS = """
:root { --ink: #1c2126; --soft: #57606a; --line: #d8dee4; --blue: #0072b2; --warn: #8a3c00; }
* { box-sizing: border-box }
html { -webkit-text-size-adjust: 100% }
body { margin: 0 auto; max-width: 62rem; padding: 1.2rem 1rem 4rem; color: var(--ink); background: #fff;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 }
h2 { font-size: 1.15rem; margin: 2.6rem 0 0.5rem; padding-top: 0.7rem; border-top: 1px solid var(--line) }
h3 { font-size: 1rem; margin: 1.2rem 0 0.3rem }
p { margin: 0.5rem 0; max-width: 46rem }
h1, h2, h3, p, li, dd, summary { overflow-wrap: anywhere }
header p, .soft, small, .legend { color: var(--soft) }
small { display: block; font-size: 0.8rem; font-weight: normal; line-height: 1.4 }
code, pre { font: 0.86em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace }
pre { margin: 0.5rem 0; padding: 0.7rem 0.9rem; background: #f6f8fa; border-radius: 6px; white-space: pre-wrap;
  overflow-wrap: anywhere }
.lead { font-size: 1.12rem; max-width: 46rem }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: 0.7rem; margin: 1rem 0;
  padding: 0 }
.tiles div { border: 1px solid var(--line); border-radius: 8px; padding: 0.7rem 0.9rem }
.tiles dt { color: var(--soft); font-size: 0.85rem }
.tiles dd { margin: 0; font-size: 0.85rem; line-height: 1.45 }
.tiles dd b { display: block; font-size: 1.6rem; line-height: 1.3; font-variant-numeric: tabular-nums }
.warning { border-left: 4px solid var(--warn); padding: 0.3rem 0 0.3rem 0.8rem; color: var(--warn) }
.box { overflow-x: auto; margin: 0.6rem 0 }
.tall { max-height: 88vh; overflow: auto; width: fit-content; max-width: 100% }
figure { margin: 0.6rem 0 }
figure svg { display: block; width: 100%; height: auto }
.narrow { display: none }
table { border-collapse: collapse; font-size: 0.88rem; font-variant-numeric: tabular-nums }
th, td { padding: 0.32rem 0.7rem 0.32rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line) }
thead th { color: var(--soft); font-weight: 600; font-size: 0.8rem; vertical-align: bottom }
tbody th { font-weight: 600 }
.members { width: 100% }
.members td, .members th { white-space: nowrap }
.members .does { white-space: normal; min-width: 10rem; font-weight: normal }
.joules { width: 100% }
.joules td:nth-child(2) { width: 45%; min-width: 8rem; vertical-align: middle }
.joules td:nth-child(n+3) { white-space: nowrap; text-align: right }
.joules th { overflow-wrap: anywhere }
.bill td:nth-child(2) { width: 12rem; vertical-align: middle }
.bar { display: block; height: 0.5rem; border-radius: 2px; min-width: 1px; margin: 1px 0 }
.before { background: #9aa4ae }
.after { background: var(--blue) }
.map { border-collapse: separate; border-spacing: 0; font-size: 0.75rem; line-height: 1.15 }
.map th, .map td { padding: 0.18rem 0; border: 0 }
.map td, .map thead th { text-align: center; width: 2.05rem; min-width: 2.05rem }
.map td { border: 1px solid #fff; background: #f3f5f7 }
.map tbody th, .map thead th:first-child { position: sticky; left: 0; z-index: 1; background: #fff; font-weight: normal;
  text-align: left; padding-right: 0.6rem; width: auto; min-width: 7rem; white-space: nowrap }
.map thead th { position: sticky; top: 0; z-index: 2; background: #fff }
.map thead th:first-child { z-index: 3 }
.map .known { color: #8b949e }
.map .first th { border-top: 1px solid var(--line) }
.map .knee { color: var(--blue); box-shadow: inset 0 -3px 0 var(--blue) }
.map small { font-size: 0.68rem }
.legend { font-size: 0.82rem; max-width: none }
.legend span { white-space: nowrap; margin-right: 0.9em }
.legend b { display: inline-block; width: 1.7em; height: 1.35em; line-height: 1.35em; text-align: center;
  vertical-align: middle; background: #f3f5f7; color: var(--ink) }
.map .s1, .legend .s1 { background: #d6e6f2 }
.map .s2, .legend .s2 { background: #a9cbe3 }
.map .s3, .legend .s3 { background: #6ba6cf }
.map .s4, .legend .s4 { background: #2a78ae; color: #fff }
.map .s5, .legend .s5 { background: #0b4470; color: #fff }
summary { cursor: pointer; color: var(--blue); padding: 0.15rem 0 }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: 0.15rem 1rem; margin: 0.5rem 0 }
.facts dt { color: var(--soft) }
.facts dd { margin: 0; overflow-wrap: anywhere }
@media (max-width: 40rem) {
  body { padding: 0.9rem 0.8rem 3rem }
  h1 { font-size: 1.25rem }
  .tiles { grid-template-columns: 1fr 1fr; gap: 0.5rem }
  .tiles dd b { font-size: 1.25rem }
  .wide { display: none }
  .narrow { display: block }
  .members, .members tbody, .members tr, .members th, .members td { display: block; border: 0; padding: 0 }
  .members thead { display: none }
  .members tr { border-bottom: 1px solid var(--line); padding: 0.5rem 0 }
  .members td, .members th { white-space: normal }
  .members td[data-head]:not(:empty)::before { content: attr(data-head) ": "; color: var(--soft) }
  .members td { margin-top: 0.25rem }
  .map tbody th, .map thead th:first-child { max-width: 8.5rem; white-space: normal; overflow-wrap: anywhere }
  .joules { min-width: 27rem }
  .joules th:first-child { min-width: 7rem }
  .joules td:nth-child(2) { width: 26%; min-width: 4.5rem }
  .facts { grid-template-columns: 1fr }
  .facts dt { margin-top: 0.3rem }
}
@media print {
  @page { margin: 14mm }
  html { font-size: 13px }
  body { max-width: none; padding: 0; font-size: 1rem; print-color-adjust: exact; -webkit-print-color-adjust: exact }
  h2, h3 { break-after: avoid }
  tr, figure, .tiles, .warning { break-inside: avoid }
  .tiles { grid-template-columns: repeat(4, 1fr) }
  .box { overflow: visible; max-height: none }
  .map thead th { position: static }
  .wide { display: block }
  .narrow { display: none }
  .members td, .members th { white-space: normal; overflow-wrap: anywhere }
  .members .does { min-width: 0 }
  .map { font-size: 0.7rem }
  .map td, .map thead th { width: 1.75rem; min-width: 1.75rem }
  .map tbody th, .map thead th:first-child { position: static; white-space: normal; overflow-wrap: anywhere }
}
"""
