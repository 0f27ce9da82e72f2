//! A page that needs nothing else.

use std::fmt::Write;

use super::{colour, figure, plot};
use crate::bench::candidate::{LOCAL, PASS_THROUGH};
use crate::bench::results::{Amounts, Cost, Plot, Results, Row};
use crate::bench::statistics::Summary;
use crate::mount::Mode;
use crate::page::{begin, escaped};

/// What this page adds to the look of all. Bars are as wide as the window lets them be; their texts are not scaled.
const STYLE: &str = "
body { max-width: 1240px }
.wide td:first-child, .wide th:first-child { position: sticky; left: 0; background: var(--back) }
td.best { font-weight: 700 } th { white-space: normal; vertical-align: bottom } td small, .note { color: var(--soft) } td small { white-space: nowrap }
figure { margin: 1rem 0; break-inside: avoid } figcaption { font-weight: 600 }
.bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: .15rem .6rem; align-items: center }
.bars svg { width: 100%; height: 16px; display: block } .bars span { white-space: nowrap }
svg .spread { stroke: var(--ink); stroke-width: 1.5 }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 0 2rem }
dt { font-weight: 600 } dd { margin: 0 0 .4rem 0; overflow-wrap: anywhere }
code { overflow-wrap: anywhere }
";

/// The page.
pub fn page(results: &Results) -> String {
    let mut page = begin("Larder: benchmark", &[colour::STYLE, STYLE, plot::STYLE].concat());
    page.push_str(
        "<p>Each figure is the median of the rounds; below it is half the distance of the quartiles, in percent, and how \
         good it is beside the local disk (×1: as good). In each round all candidates run one after the other. The best \
         one that has a network is in bold.</p>",
    );
    about(&mut page, results);
    for workload in results.workloads() {
        let rows: Vec<&Row> = results.rows.iter().filter(|row| row.workload == workload).collect();
        // Writing to a string cannot fail.
        let _ = write!(page, "<h2>{}</h2>", escaped(workload));
        table(&mut page, results, &rows);
        ratios(&mut page, results, &rows);
        page.push_str("<div class=plots>");
        rows.iter().for_each(|row| bars(&mut page, results, row));
        page.push_str("</div>");
        costs(&mut page, results, &rows);
        plots(&mut page, results, workload);
    }
    let mut shown = results.workloads();
    for question in results.plots.iter().map(|plot| plot.question.as_str()) {
        if !shown.contains(&question) {
            let _ = write!(page, "<h2>{}</h2>", escaped(question));
            plots(&mut page, results, question);
            shown.push(question);
        }
    }
    page
}

/// A question's pictures and the values behind them, if it has any.
fn plots(page: &mut String, results: &Results, question: &str) {
    let of: Vec<&Plot> = results.plots.iter().filter(|plot| plot.question == question).collect();
    if of.is_empty() {
        return;
    }
    let mut notes: Vec<&str> = Vec::new();
    for note in of.iter().map(|plot| plot.note.as_str()) {
        if !notes.contains(&note) {
            let _ = write!(page, "<p class=soft>{}</p>", escaped(note));
            notes.push(note);
        }
    }
    page.push_str("<div class=plots>");
    of.iter().for_each(|one| plot::picture(page, one));
    page.push_str("</div><details><summary>The values: medians</summary>");
    for one in of {
        let _ = write!(page, "<p>{}: {}", escaped(&one.name), escaped(&one.y.label));
        if !one.y.unit.is_empty() {
            let _ = write!(page, " ({})", escaped(&one.y.unit));
        }
        page.push_str("</p>");
        plot::table(page, one);
    }
    page.push_str("</details>");
}

fn about(page: &mut String, results: &Results) {
    page.push_str("<details open><summary>How it was measured</summary><dl>");
    for run in &results.runs {
        let minutes = run.took / 60.0;
        let _ = write!(
            page,
            "<dt>{} UTC, {minutes:.0} minutes<dd><code>{}</code>",
            escaped(&run.began),
            escaped(&run.command)
        );
        if let Some(Amounts { scale, clients, rtt }) = &run.amounts {
            let _ = write!(page, "<dt>Amounts<dd>{}, {clients} clients where several are at work", escaped(scale));
            if *rtt > 0.0 {
                let _ = write!(page, ", {rtt} ms more there and back for messages of Larder's");
            }
        }
        for (title, facts) in [("Machine", &run.machine), ("Versions", &run.versions), ("Set up", &run.settings)] {
            let facts: Vec<String> = facts.iter().map(|(name, fact)| format!("{name}: {fact}")).collect();
            if !facts.is_empty() {
                let _ = write!(page, "<dt>{title}<dd>{}", escaped(&facts.join("; ")));
            }
        }
    }
    for left_out in &results.left_out {
        let workload = left_out.workload.as_deref().unwrap_or("everything");
        let _ = write!(
            page,
            "<dt>{} is left out of {}<dd>{}",
            escaped(&left_out.candidate),
            escaped(workload),
            escaped(&left_out.why)
        );
    }
    page.push_str("</dl></details>");
}

fn table(page: &mut String, results: &Results, rows: &[&Row]) {
    page.push_str("<div class=wide><table><tr><th>");
    let candidates = results.measured(rows);
    for candidate in &candidates {
        let _ = write!(page, "<th>{}", escaped(candidate));
    }
    for row in rows {
        let _ = write!(page, "<tr><td>{} <small>{}</small>", escaped(&row.name), row.unit.name());
        let best = row.best(results.contestants());
        for candidate in candidates.iter().copied() {
            let Some(summary) = row.summary(candidate) else {
                page.push_str("<td class=soft>–");
                continue;
            };
            let is_best = best == Some(candidate);
            let class = if is_best { " class=best" } else { "" };
            let spread = (summary.spread() * 100.0).round();
            let few = if summary.count < row.rounds() { format!("{} rounds, ", summary.count) } else { String::new() };
            let _ = write!(page, "<td{class}>{}<br><small>{few}±{spread:.0} %", figure(summary.median));
            if candidate != LOCAL
                && let Some(ratio) = row.ratio(candidate, LOCAL)
            {
                let _ = write!(page, ", ×{}", figure(ratio));
            }
            page.push_str("</small>");
        }
    }
    page.push_str("</table></div>");
}

/// How the modes stand beside the best of the others, and beside what FUSE allows.
fn ratios(page: &mut String, results: &Results, rows: &[&Row]) {
    let measured = results.measured(rows);
    let is_mode = |candidate: &&String| Mode::ALL.iter().any(|mode| mode.name() == candidate.as_str());
    let modes: Vec<&String> = measured.iter().copied().filter(is_mode).collect();
    let others: Vec<&String> = results.contestants().filter(|one| measured.contains(one) && !is_mode(one)).collect();
    let has_yardstick = measured.iter().any(|candidate| *candidate == PASS_THROUGH);
    if modes.is_empty() || (others.is_empty() && !has_yardstick) {
        return;
    }
    page.push_str(
        "<details open><summary>Larder beside the others: 2 is twice as good</summary><div class=wide><table><tr><th>",
    );
    for mode in &modes {
        if !others.is_empty() {
            let _ = write!(page, "<th>{} / best other", escaped(mode));
        }
        if has_yardstick {
            let _ = write!(page, "<th>{} / {PASS_THROUGH}", escaped(mode));
        }
    }
    for row in rows {
        let best = row.best(others.iter().copied());
        let _ = write!(page, "<tr><td>{}", escaped(&row.name));
        for mode in &modes {
            let mut cell = |ratio: Option<f64>, of: &str| {
                let _ = match ratio {
                    Some(ratio) => write!(page, "<td>{}<br><small>{}</small>", figure(ratio), escaped(of)),
                    None => write!(page, "<td class=soft>–"),
                };
            };
            if !others.is_empty() {
                cell(best.and_then(|best| row.ratio(mode, best)), best.map_or("", String::as_str));
            }
            if has_yardstick {
                cell(row.ratio(mode, PASS_THROUGH), "");
            }
        }
    }
    page.push_str("</table></div></details>");
}

/// A bar for each candidate, from zero on, with the quartiles.
fn bars(page: &mut String, results: &Results, row: &Row) {
    let known = results.candidates.iter().enumerate();
    let known: Vec<(usize, &String, Summary)> =
        known.filter_map(|(place, candidate)| Some((place, candidate, row.summary(candidate)?))).collect();
    let most = known.iter().map(|(_, _, summary)| summary.high).fold(0.0, f64::max);
    if most <= 0.0 {
        return;
    }
    let better = if row.unit.more_is_better() { "more is better" } else { "less is better" };
    let _ = write!(
        page,
        "<figure><figcaption>{} <small class=note>{}, {better}</small></figcaption><div class=bars>",
        escaped(&row.name),
        row.unit.name()
    );
    for (place, candidate, summary) in known {
        let at = |value: f64| value / most * 100.0;
        let (low, high) = (at(summary.low), at(summary.high));
        let _ = write!(
            page,
            "<span>{0}</span><svg role=img aria-label='{0}: {1}'><rect width='{2:.2}%' height=100% \
             fill='var(--c{3})'/><line class=spread x1='{low:.2}%' x2='{high:.2}%' y1=50% y2=50% /></svg><span>{1}</span>",
            escaped(candidate),
            figure(summary.median),
            at(summary.median).max(0.2),
            colour::of(candidate, place),
        );
    }
    page.push_str("</div></figure>");
}

/// What a round cost, beside time.
fn costs(page: &mut String, results: &Results, rows: &[&Row]) {
    page.push_str(
        "<details><summary>What it cost: the medians of each round's requests, traffic, processor time and memory\
         </summary><div class=wide><table><tr><th>row<th>candidate<th>server CPU s<th>client CPU s<th>network MiB\
         <th>server MiB<th>client MiB<th>requests",
    );
    for row in rows {
        for candidate in results.contestants() {
            let Some(samples) = row.of.get(candidate) else { continue };
            let median = |of: &dyn Fn(&Cost) -> f64| {
                let values: Vec<f64> = samples.iter().map(|sample| of(&sample.cost)).collect();
                Summary::of(&values).map_or(0.0, |summary| summary.median)
            };
            let mib = |bytes: u64| bytes as f64 / (1 << 20) as f64;
            let _ = write!(page, "<tr><td>{}<td>{}", escaped(&row.name), escaped(candidate));
            let figures: [&dyn Fn(&Cost) -> f64; 5] = [
                &|cost| cost.server_cpu,
                &|cost| cost.client_cpu,
                &|cost| mib(cost.wire),
                &|cost| mib(cost.server_memory),
                &|cost| mib(cost.client_memory),
            ];
            for of in figures {
                let _ = write!(page, "<td>{}", figure(median(of)));
            }
            let mut kinds: Vec<&String> = samples.iter().flat_map(|sample| sample.cost.requests.keys()).collect();
            kinds.sort();
            kinds.dedup();
            let of_kind = |kind: &String| median(&|cost| cost.requests.get(kind).copied().unwrap_or(0) as f64);
            let told: Vec<String> = kinds.iter().map(|kind| format!("{kind} {}", figure(of_kind(kind)))).collect();
            let _ = write!(page, "<td>{}", escaped(&told.join(", ")));
        }
    }
    page.push_str("</table></div></details>");
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::bench::results::{About, LeftOut, Sample, Unit};

    #[test]
    fn the_page_shows_what_the_results_say() {
        let mut results = Results { candidates: vec!["local".into(), "afs".into()], ..Results::default() };
        results.runs.push(About { command: "scripts/bench <all>".into(), ..About::default() });
        results.left_out.push(LeftOut { candidate: "sshfs".into(), workload: None, why: "no key".into() });
        for (candidate, value) in [("local", 2000.0), ("afs", 1000.0), ("afs", 1200.0), ("afs", 1100.0)] {
            let requests = BTreeMap::from([("create".to_owned(), 7)]);
            let cost = Cost { requests, wire: 3 << 20, ..Cost::default() };
            results.note("tree", "unpack an archive", Unit::PerSecond, candidate, Sample { value, cost });
        }
        let page = page(&results);
        for shown in [
            "scripts/bench &lt;all&gt;",
            "sshfs is left out of everything<dd>no key",
            "<td class=best>1100<br><small>±5 %, ×0.550</small>",
            "<rect width='55.00%'",
            "create 7.00",
        ] {
            assert!(page.contains(shown), "{shown} is missing in {page}");
        }
        // Nothing comes from elsewhere.
        assert!(!page.contains("http") && !page.contains("<script"));
    }
}
