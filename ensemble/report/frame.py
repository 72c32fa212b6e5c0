"""The report's page: its style, its script and its frame, with places for what the report fills in."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from string import Template

SCRIPT = Path(__file__).with_name("page.js").read_text(encoding="utf-8")
SCRIPT_HASH = "sha256-" + b64encode(sha256(SCRIPT.encode()).digest()).decode("ascii")
"""The policy lets this one script run: none that text from rows or files could ever bring in."""

PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,
  initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline';
  script-src '$script_hash'">
<title>Stack report</title><style>
:root { --bg:#fbfbfa; --card:#fff; --ink:#1d2430; --soft:#5d6675; --line:#dfe3e8; --accent:#1a6fb5;
  --muted:#9aa5b4; --good:#0b7a53; --warm:#c2571a; color-scheme: light dark }
@media (prefers-color-scheme: dark) { :root { --bg:#14171c; --card:#1c2027; --ink:#e6e9ee; --soft:#9ba5b3;
  --line:#333a45; --accent:#5aaef0; --muted:#697484; --good:#4cc38a; --warm:#f0915a } }
* { box-sizing:border-box } body { margin:0; background:var(--bg); color:var(--ink); overflow-wrap:anywhere;
  font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif }
main { max-width:1160px; margin:0 auto; padding:24px 16px 64px }
h1 { font-size:1.5rem; margin:0 0 4px } h2 { font-size:1.12rem; margin:0 0 4px } h3 { font-size:.95rem;
  margin:14px 0 2px }
p { margin:4px 0 10px; color:var(--soft) } strong { color:var(--ink) }
section { background:var(--card); border:1px solid var(--line); border-radius:10px; padding:16px 18px;
  margin:16px 0 }
.tiles { display:grid; grid-template-columns:repeat(auto-fit,minmax(150px,1fr)); gap:10px; margin:14px 0 }
.tile { background:var(--card); border:1px solid var(--line); border-radius:10px; padding:10px 14px }
.tile b { display:block; font-size:1.35rem; font-variant-numeric:tabular-nums; overflow-wrap:anywhere }
.tile span { color:var(--soft); font-size:.84rem; overflow-wrap:anywhere }
.chart { display:grid; grid-template-columns:fit-content(270px) 1fr auto; gap:0 12px }
.chart .row { display:grid; grid-column:1 / -1; grid-template-columns:subgrid; align-items:center;
  padding:2px 6px; border-radius:6px }
.chart.weights { grid-template-columns:fit-content(200px) 1fr auto }
.row .name { overflow-wrap:anywhere } .row .num { font-variant-numeric:tabular-nums; font-size:.86rem;
  text-align:right;
  color:var(--soft); white-space:nowrap }
.row.chosen { background:color-mix(in srgb, var(--accent) 13%, transparent) } .row.chosen .name {
  font-weight:650 }
.strip { position:relative; height:18px; display:block } .strip i { position:absolute; display:block }
.bar { top:8px; height:2px; background:var(--muted) } .dot { top:4px; width:10px; height:10px;
  margin-left:-5px;
  border-radius:50%; background:var(--muted) } .zero { top:-2px; bottom:-2px; width:1px;
  background:var(--muted) }
.row.chosen .dot,.row.chosen .bar,.row.good .dot,.row.good .bar { background:var(--accent) }
.row.bad .dot,.row.bad .bar { background:var(--warm) }
.fill { left:0; top:4px; height:10px; border-radius:3px; background:var(--accent); min-width:1px }
  .fill.neg { background:var(--warm) }
.scroll { overflow-x:auto; background:
  linear-gradient(to left, var(--card) 40%, transparent) 100% 0 / 36px 100% no-repeat local,
  linear-gradient(to left, color-mix(in srgb, var(--ink) 24%, transparent), transparent) 100% 0 / 12px 100%
  no-repeat scroll }
table { border-collapse:collapse; width:100%; font-size:.83rem;
  font-variant-numeric:tabular-nums }
th,td { text-align:right; padding:4px 8px; border-bottom:1px solid var(--line); white-space:nowrap } th {
  color:var(--soft); font-weight:600 }
th:first-child,td:first-child { text-align:left } tr.chosen td { font-weight:650; color:var(--accent) }
svg { width:100%; max-width:400px; display:block } svg text { fill:var(--soft); font-size:11px }
.grid { stroke:var(--line); fill:none } .axis { stroke:var(--muted) } .ideal { stroke:var(--muted);
  stroke-dasharray:4 4; fill:none }
.curve { fill:none; stroke-width:2 } .curve.before { stroke:var(--warm) } .curve.after {
  stroke:var(--accent) }
circle.before,rect.before { fill:var(--warm) } circle.after,rect.after { fill:var(--accent) } rect {
  opacity:.75 }
.key { display:inline-block; width:10px; height:10px; border-radius:50%; margin:0 5px 0 12px } .key.before
  { background:var(--warm); margin-left:0 }
.key.after { background:var(--accent) } .two { display:grid; grid-template-columns:minmax(0,1fr)
  minmax(0,1fr); gap:0 16px }
.two section { min-width:0 }
article { border-top:1px solid var(--line); padding:10px 0 } article:first-of-type { border-top:0 }
article dl { display:grid; grid-template-columns:84px minmax(0,1fr); gap:2px 10px; margin:6px 0 0;
  font-size:.88rem }
dt { color:var(--soft) } dd { margin:0; overflow-wrap:anywhere; white-space:pre-wrap }
.slider { display:grid; grid-template-columns:minmax(0,1fr) auto; gap:0 10px; margin:6px 0 }
.slider label { overflow-wrap:anywhere } .slider output { color:var(--soft);
  font-variant-numeric:tabular-nums }
.slider input { grid-column:1 / -1; width:100%; margin:2px 0; accent-color:var(--accent) }
.first th { white-space:normal; overflow-wrap:normal }
.first td:first-child { white-space:normal; min-width:104px }
fieldset label { display:grid; grid-template-columns:auto minmax(0,1fr); gap:6px; align-items:baseline }
fieldset { border:0; padding:0; margin:0 0 10px; display:grid; gap:2px } legend { padding:0; font-weight:600 }
.now { margin:12px 0 } .now b { font-size:1.7rem; color:var(--ink); font-variant-numeric:tabular-nums;
  margin-right:6px }
.now span { font-variant-numeric:tabular-nums }
button,select { font:inherit; color:var(--ink); background:var(--bg); border:1px solid var(--line);
  border-radius:7px; padding:5px 12px; min-height:34px } button { cursor:pointer }
:is(button,select,input):focus-visible { outline:2px solid var(--accent); outline-offset:2px }
.picks { display:grid; grid-template-columns:repeat(3,minmax(0,1fr)); gap:8px; max-width:400px }
.picks label { color:var(--soft); font-size:.84rem } .picks select { width:100%; padding:5px 4px }
.t0 { --mix:94% } .t1 { --mix:82% } .t2 { --mix:70% } .t3 { --mix:59% } .t4 { --mix:49% } .t5 { --mix:39% }
.t6 { --mix:30% } .t7 { --mix:21% } .t8 { --mix:13% } .t9 { --mix:5% }
polygon { fill:color-mix(in srgb, var(--accent) var(--mix), var(--card)); stroke:var(--card); stroke-width:.3;
  cursor:pointer }
.heat td { background:color-mix(in srgb, var(--accent) calc(var(--mix) * .4), var(--card)) }
.heat th[scope=row] { text-align:left } .wrapped td:last-child,.wrapped th:last-child { text-align:left;
  white-space:normal; min-width:220px; overflow-wrap:anywhere }
.best { fill:var(--warm); stroke:var(--card); stroke-width:1.5; pointer-events:none }
.here { fill:none; stroke:var(--ink); stroke-width:2.5; pointer-events:none }
.notes { margin:0; padding:10px 18px 10px 34px; border:1px solid var(--warm); border-radius:10px }
footer { color:var(--soft); font-size:.84rem; overflow-wrap:anywhere }
@media (max-width:720px) { .two { grid-template-columns:minmax(0,1fr) }
  th,td { padding:4px 5px } .scroll td:first-child { white-space:normal; min-width:104px }
  .heat th[scope=row] { white-space:normal; min-width:118px; font-weight:400 }
  .chart,.chart.weights { display:block }
  .chart .row { grid-template-columns:minmax(0,1fr); padding:5px 6px }
  .chart.weights .row { grid-template-columns:minmax(0,1fr) auto }
  .chart.weights .strip { grid-row:2; grid-column:1 / -1 }
  section { padding:14px 12px } .row .num { font-size:.8rem; white-space:normal }
  .chart:not(.weights) .row .num { text-align:left; grid-row:2 } }
</style></head><body><main>
<h1>Stack of $n_members models</h1>
<p>$n_rows rows, $n_groups prompt groups, $n_folds folds ($folds_from)$repeats. Log-loss in nats, lower is
  better.</p>
<div class="tiles">$tiles</div>
$notes
<section><h2>Nested log-loss</h2><p>Each method fitted without the fold it predicts, hyper-parameters
  included.
Whiskers are 95 % bootstrap intervals over prompt groups.$prior_note</p>$losses</section>
<section><h2>Difference to the equal-weight mean</h2><p>Paired, so far narrower than the losses
  themselves: left of the line is
better than the mean, and an interval that leaves the line out is more than noise.</p>$differences</section>
<section><h2>All scores</h2><div class="scroll">$table</div>
<p>Chosen: <strong>$chosen</strong>, $why.</p></section>
<div class="two"><section><h2>Fitted weights</h2><p>$weights_note</p>$weights
<h3>Calibration error</h3><p>Of the equal-weight mean (before) and of $chosen (after). Binned: mean gap
  of 12 bins. Smooth: by a kernel whose width is the error itself (smooth ECE), free of bins.</p>
$calibration</section>
<section><h2>Reliability</h2><p><i class="key before"></i>equal-weight mean<i class="key after"></i>$chosen.
All classes pooled; on the dashed line, what is predicted is what happens. Dots are bins, lines a
  kernel's.</p>
$reliability</section></div>
$explorer
$members
<section><h2>Where the blend helps</h2><p>$chosen against the best single model, $single, on parts of the
  rows: left of
the line is better.</p>$slices</section>
$confusion
<section><h2>Worst rows</h2><p>Where $chosen lost most: hard rows, or wrong labels.</p>$worst</section>
<footer>$footer</footer>
</main>
<script type="application/json" id="data">$data</script>
<script>$script</script></body></html>
""")
