"""The style sheet of the page, for screen and paper."""

STYLE = """\
body { margin: 0; color: #222; background: #fff;
       font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 24px 24px 64px; }
h1 { font-size: 26px; margin: 0 0 4px; }
h2 { font-size: 18px; margin: 36px 0 8px; }
p { margin: 6px 0; max-width: 78ch; }
.lead { color: #555; }
.chosen { margin: 24px 0; padding: 4px 20px 14px; border-left: 4px solid #0072b2;
          background: #f3f7fa; }
.chosen h2 { margin-top: 12px; }
figure { margin: 8px 0; }
img { max-width: min(100%, 900px); height: auto; }
figcaption { color: #555; font-size: 13px; max-width: 90ch; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 12.5px; font-variant-numeric: tabular-nums; }
th { text-align: right; vertical-align: bottom; font-weight: 600; border-bottom: 1.5px solid #888; }
th, td { padding: 3px 6px; }
td { text-align: right; white-space: nowrap; border-bottom: 1px solid #e6e6e6; }
td small { color: #777; font-size: 11px; }
.word { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.name { text-align: left; }
.taken td { background: #e3eff7; font-weight: 600; }
pre { margin: 4px 0; padding: 6px 10px; background: #f4f4f4; border-radius: 3px; font-size: 12px;
      white-space: pre-wrap; overflow-wrap: anywhere; }
a { color: #0072b2; text-decoration: none; }
li { margin: 10px 0; }
@media print {
  @page { size: A4; margin: 14mm; }
  main { max-width: none; padding: 0; }
  body { font-size: 10.5pt; }
  table { font-size: 7pt; }
  td small { font-size: 6.5pt; }
  th, td { padding: 2px 3px; }
  .scroll { overflow: visible; }
  figure, .chosen, tr, li { break-inside: avoid; }
  h2 { break-after: avoid; }
  .chosen, .taken td, pre { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
