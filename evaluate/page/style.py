"""How the report looks, in light and dark, and the script that sorts its tables."""

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --soft: #f4f6f8; --line: #d9dee3; --ink: #1b1f23;
  --dim: #57606a; --link: #0b5cad; --tint: #6cb2e8; --error: #f0a36b;
  --c0: #0072b2; --c1: #c24e00; --c2: #00845f; --c3: #b0558a; --c4: #9a6700; --c5: #5b5fc7; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181d; --soft: #1e242b; --line: #39424c;
  --ink: #e6e9ec; --dim: #a3acb5; --link: #74b8f5; --tint: #1f6699; --error: #a14a12;
  --c0: #5ab0ea; --c1: #ff8d4f; --c2: #35c79a; --c3: #e79cc6; --c4: #efb63d; --c5: #a5a8ff; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1180px; margin: 0 auto; padding: 1rem; }
a { color: var(--link); }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .4rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 0 0 .3rem; padding-top: 2.2rem; }
h3 { font-size: 1rem; margin: .9rem 0 .2rem; }
.facts, .note { color: var(--dim); font-size: .9rem; margin: .2rem 0 .7rem; max-width: 52rem;
  overflow-wrap: anywhere; }
.answer { border-left: 5px solid var(--c0); background: var(--soft); padding: .7rem 1.1rem; margin: 1rem 0; }
.answer p { margin: .3rem 0; overflow-wrap: anywhere; }
.big { font-size: 1.2rem; }
nav ul, .legend { list-style: none; display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; padding: 0;
  margin: .5rem 0; font-size: .9rem; }
.legend li { overflow-wrap: anywhere; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 540px));
  gap: 1rem 2rem; }
figure { margin: 0; }
figcaption .note { margin: 0 0 .3rem; }
.chart { display: block; width: 100%; height: auto; font-size: 12px; overflow: visible; }
.chart text { fill: var(--ink); }
.chart .tick, .chart .axis { fill: var(--dim); }
.middle { text-anchor: middle; } .end { text-anchor: end; }
.label { text-anchor: middle; font-weight: 600; paint-order: stroke; stroke: var(--paper); stroke-width: 4px;
  stroke-linejoin: round; }
.grid { stroke: var(--line); fill: none; stroke-width: .8; }
.front { stroke: var(--dim); fill: none; stroke-width: 1.3; stroke-dasharray: 4 3; }
.leader { stroke: var(--ink); fill: none; stroke-width: .8; }
.thin { fill: none; stroke: var(--c); stroke-width: 1; opacity: .55; }
.whisker { fill: none; stroke: var(--c); stroke-width: 1.2; opacity: .45; }
.mark { fill: var(--c); stroke: var(--paper); stroke-width: .8; }
.mark.hollow { fill: var(--paper); stroke: var(--c); stroke-width: 1.5; }
rect.bar { fill: var(--line); }
.swatch { width: 1.15em; height: 1.15em; vertical-align: -.2em; margin-right: .35em; }
.s0 { --c: var(--c0); } .s1 { --c: var(--c1); } .s2 { --c: var(--c2); }
.s3 { --c: var(--c3); } .s4 { --c: var(--c4); } .s5 { --c: var(--c5); }
.scroll { overflow: auto; max-height: 34rem; max-width: 100%; margin: .4rem 0 1rem; }
table { width: max-content; border-collapse: separate; border-spacing: 0; font-size: .85rem;
  font-variant-numeric: tabular-nums; }
caption { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.sortable th, .sortable td { padding: .25rem .6rem; text-align: left; border-bottom: 1px solid var(--line);
  vertical-align: top; max-width: 22rem; overflow-wrap: anywhere; }
.sortable td.n { text-align: right; white-space: nowrap; overflow-wrap: normal; }
.sortable td.bar { min-width: 7rem; background: linear-gradient(to right,
  color-mix(in srgb, var(--tint) 45%, transparent) calc(100% * var(--v)), transparent 0); }
.sortable thead th { position: sticky; top: 0; z-index: 1; background: var(--soft); vertical-align: bottom;
  overflow-wrap: normal; }
#settings tr > :first-child { position: sticky; left: 0; max-width: 9rem; background: var(--paper); }
#settings thead tr > :first-child { z-index: 2; background: var(--soft); }
th button { all: unset; cursor: pointer; font-weight: 600; white-space: nowrap; }
th button:focus-visible { outline: 2px solid var(--link); }
th[aria-sort=ascending] button::after { content: " ↑"; }
th[aria-sort=descending] button::after { content: " ↓"; }
.heat tr:first-child th { text-align: center; position: sticky; top: 0; background: var(--paper); }
.heat th { font-weight: 600; padding: .25rem .5rem; text-align: right; max-width: 12rem;
  overflow-wrap: anywhere; }
.heat td { padding: .45rem .6rem; min-width: 3.2rem; text-align: center; border: 1px solid var(--paper); }
.heat td[style] { background: color-mix(in srgb, var(--tint) calc(8% + 92% * var(--v)), var(--paper)); }
.heat td.marked { box-shadow: inset 0 0 0 2px var(--ink); font-weight: 700; }
.matrix td { padding: .15rem .25rem; min-width: 2.1rem; }
.matrix td[style] { background: color-mix(in srgb, var(--error) calc(6% + 94% * var(--v)), var(--paper)); }
.matrix td.marked { box-shadow: none; background: var(--soft); font-weight: 400; color: var(--dim); }
.upright tr:first-child th { vertical-align: bottom; writing-mode: vertical-rl; max-width: none;
  text-align: right; white-space: nowrap; }
.matrix:not(.upright) tr:first-child th { text-align: center; }
.tiny td { min-width: .8rem; padding: 0; height: .8rem; border-width: 0 1px 1px 0; }
.tiny th { font-size: .65rem; font-weight: 400; padding: 0 .3rem; line-height: 1.1; white-space: nowrap; }
.beside { display: flex; flex-wrap: wrap; gap: 0 2.5rem; align-items: flex-start; }
.beside > * { flex: 0 1 auto; min-width: 0; max-width: 100%; }
.gallery { list-style: none; padding: 0; margin: 0; display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); font-size: .85rem; }
.gallery li { background: var(--soft); padding: .6rem; min-width: 0; display: flex; flex-direction: column; }
.gallery svg { width: 100%; max-height: 13rem; margin-bottom: .4rem; }
.gallery p { margin: 0; overflow-wrap: anywhere; }
.pixels { image-rendering: pixelated; }
.patches { fill: none; stroke: #fff; stroke-width: .8; vector-effect: non-scaling-stroke;
  mix-blend-mode: difference; opacity: .6; }
section:has(#grid-lines:not(:checked)) .patches { display: none; }
.key { color: var(--dim); font-family: ui-monospace, monospace; font-size: .78rem; overflow-wrap: anywhere; }
summary { cursor: pointer; font-weight: 600; margin: .6rem 0; }
@media print { .scroll { max-height: none; } }
"""

# Sorts by numbers where cells have them (data-v), the largest first, and by text elsewhere; empty cells come
# last.
SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  table.tHead.addEventListener("click", (event) => {
    const head = event.target.closest("button")?.closest("th");
    if (!head) return;
    const place = head.cellIndex, first = table.tBodies[0].rows[0]?.cells[place];
    const up = head.ariaSort ? head.ariaSort === "descending" : !first?.classList.contains("n");
    const value = (row) => {
      const cell = row.cells[place];
      if (cell.classList.contains("n")) return cell.dataset.v === undefined ? null : Number(cell.dataset.v);
      return cell.textContent;
    };
    const compare = (a, b) => (typeof a === "number" ? a - b : a.localeCompare(b, "en", {numeric: true}));
    const rows = [...table.tBodies[0].rows].map((row) => [value(row), row]);
    rows.sort(([a], [b]) => (a === null) - (b === null) || (a === null ? 0 : (up ? 1 : -1) * compare(a, b)));
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    table.tBodies[0].append(...rows.map(([, row]) => row));
  });
}
"""
