"""The look of a report: one style sheet for light and dark, wide and narrow."""

CSS = """
:root { color-scheme: light dark; --page: #fff; --ink: #1a1e23; --muted: #5c6670; --line: #dfe3e8;
  --a: #2a67ad; --b: #b8560b; --good: #1a7a4c; --bad: #c02b30; --wash: #f5f7f9; }
@media (prefers-color-scheme: dark) { :root { --page: #13161a; --ink: #e5e8ec; --muted: #98a2ad;
  --line: #2b3138; --a: #6aa6ea; --b: #e79a48; --good: #4ac48b; --bad: #ff8585; --wash: #1b1f25; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink); overflow-wrap: break-word;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 32px 16px 64px; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 1.25rem; margin: 0 0 8px; }
h3 { font-size: 0.9375rem; margin: 0 0 8px; }
p { margin: 0 0 12px; max-width: 72ch; }
section { border-top: 1px solid var(--line); margin-top: 40px; padding-top: 24px; }
.muted, .remark, figcaption, header p { color: var(--muted); }
.verdict { font-size: 1.25rem; line-height: 1.4; margin: 24px 0 0; color: var(--ink);
  text-wrap: balance; }
.verdict + p { margin-top: 4px; }
.met { color: var(--good); } .missed { color: var(--bad); }
.notes { margin: 16px 0 0; padding: 12px 16px 12px 32px; background: var(--wash); border-radius: 6px;
  font-size: 0.9375rem; }
.notes li + li { margin-top: 6px; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr));
  gap: 32px 48px; margin-top: 20px; }
.columns > * { min-width: 0; }
.pages { columns: 2 340px; column-gap: 48px; margin-top: 20px; }
.facts { break-inside: avoid; padding-bottom: 28px; }
.columns .facts:last-child { padding-bottom: 0; }
.columns > div > figure:not(:last-child) { margin-bottom: 28px; }
figure { margin: 0; }
figcaption, .remark { font-size: 0.875rem; margin: 6px 0 0; max-width: 72ch; }
dl { margin: 0; font-size: 0.9375rem; }
dl > div { display: flex; justify-content: space-between; gap: 16px; padding: 5px 0;
  border-top: 1px solid var(--line); }
dt { color: var(--muted); flex: none; max-width: 70%; }
dd { margin: 0; text-align: right; min-width: 0; overflow-wrap: anywhere; }
dd, td, svg { font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9375rem; width: 100%; }
th, td { padding: 6px 0 6px 14px; text-align: right; white-space: nowrap; border-top: 1px solid var(--line);
  font-weight: 400; }
th:first-child { text-align: left; padding-left: 0; }
thead th { color: var(--muted); border-top: 0; }
.heat { width: auto; border-collapse: separate; border-spacing: 2px; }
.heat th { border: 0; padding: 4px 6px; } .heat thead th + th { text-align: center; }
.heat th:first-child { padding-left: 0; position: sticky; left: 0; background: var(--page); }
.heat td { border: 2px solid transparent; border-radius: 4px; padding: 5px 6px; text-align: center;
  min-width: 4.25em; background: color-mix(in srgb, var(--a) calc(var(--share) * 1%), var(--wash)); }
.heat td.none { background: none; }
.heat td.chosen { border-color: var(--b); font-weight: 700; }
pre { margin: 0; padding: 12px 16px; background: var(--wash); border-radius: 6px; white-space: normal;
  overflow-x: auto; }
pre code { display: block; padding-left: 2ch; text-indent: -2ch; } pre span { white-space: nowrap; }
code { font: 0.875rem/1.6 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
details { margin-top: 24px; } summary { cursor: pointer; color: var(--muted); margin-bottom: 8px; }
.key { margin-right: 14px; white-space: nowrap; }
.key::before { content: ""; display: inline-block; width: 10px; height: 10px; border-radius: 50%;
  margin-right: 5px; background: var(--a); }
.key.b::before { background: var(--b); }
.key.line::before { width: 16px; height: 0; border-radius: 0; border-top: 2px dashed var(--ink);
  background: none; vertical-align: middle; }
svg { display: block; width: 100%; height: auto; font-family: inherit; fill: none; }
svg text { fill: var(--ink); font-size: 12px; } svg .tick, svg .name { fill: var(--muted); }
.middle { text-anchor: middle; } .end { text-anchor: end; }
.grid, .axis { stroke: var(--line); } .axis { stroke: var(--muted); }
.target { stroke: var(--ink); stroke-width: 1.5; stroke-dasharray: 5 4; }
.curve { stroke-width: 2; stroke-linejoin: round; } .raw { stroke-width: 1; opacity: 0.35; }
.curve.a, .raw.a { stroke: var(--a); } .curve.b, .raw.b { stroke: var(--b); }
.half { max-width: 520px; margin-top: 28px; } .wash { fill: var(--wash); }
.key.d::before { background: var(--muted); }
.dot.d { fill: var(--muted); opacity: 0.5; }
.bar.a, .dot.a { fill: var(--a); } .bar.b, .dot.b { fill: var(--b); } .bar.c, .dot.c { fill: var(--muted); }
.flow { stroke: var(--muted); stroke-width: 1.5; } .residual { stroke: var(--muted); }
.box { fill: var(--a); stroke: var(--a); } .k1, .k2 { fill-opacity: 0.08; } .k3, .k4 { fill-opacity: 0.18; }
.k5, .k6 { fill-opacity: 0.32; } .k7 { fill-opacity: 0.48; }
.page { fill: var(--page); }
.skipped { stroke: var(--muted); stroke-dasharray: 4 4; }
.skipped + text { fill: var(--muted); stroke: var(--page); stroke-width: 6px; paint-order: stroke; }
.todo { margin-top: 20px; } .todo p { margin-bottom: 8px; }
@media (max-width: 600px) { svg text { font-size: 13px; } table { font-size: 0.875rem; } th, td { padding-left: 7px; }
  .heat td { min-width: 3.2em; padding: 5px 2px; } .heat th { padding: 4px 2px; } }
@media print { main { max-width: none; } section { break-inside: avoid; } }
"""
