//! What all reports have in common: pages of HTML that need no other file, in light and dark, on paper and on a telephone.

/// What a page looks like, but for what is its own.
pub const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1d2430; --soft: #667085; --line: #d9dee7; --back: #fff; --fault: #c2410c;
  --wait: #2563eb; --bad: #b91c1c; --good: #15803d }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #98a2b3; --line: #333a46; --back: #14181f;
  --fault: #fb923c; --wait: #60a5fa; --bad: #f87171; --good: #4ade80 } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back); max-width: 980px;
  margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
.wide { overflow-x: auto } table { border-collapse: collapse; width: 100% }
th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap }
th:first-child, td:first-child { text-align: left }
.bad { color: var(--bad) } .good { color: var(--good) } .soft { color: var(--soft) }
details { border-top: 1px solid var(--line); padding: .4rem 0 } summary { cursor: pointer }
svg text { font: 11px system-ui, sans-serif; fill: var(--ink) }
@media print { details, figure { break-inside: avoid } }
";

/// Text as it is written in HTML.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A page's beginning, up to its heading. `style` is what is its own.
pub fn begin(title: &str, style: &str) -> String {
    let title = escaped(title);
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>\
         <title>{title}</title><style>{STYLE}{style}</style><h1>{title}</h1>"
    )
}
