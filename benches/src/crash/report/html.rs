//! The page.

use std::fmt::Write;
use std::time::Duration;

use super::{About, again, checked, faults, few_samples, modes, places, recoveries, strikes, table};
use crate::crash::outcome::{Outcome, Span, Work, coarsen};
use crate::crash::resources::{Curve, GROWTH, MORE_FILES, MORE_MEMORY, SETTLED};
use crate::page::{begin, escaped};

/// Pixels for the names of lanes, and for their time.
const NAMES: f64 = 230.0;
const TIME: f64 = 720.0;
/// Pixels of a lane.
const LANE: f64 = 18.0;

/// What this page adds to the look of all.
const STYLE: &str = "
th:nth-child(2), td:nth-child(2) { text-align: left }
svg polyline { fill: none; stroke: var(--wait) } svg .rate { stroke: var(--soft) } svg .lane { stroke: var(--line) } svg .fault { fill: var(--fault) } svg .wait { fill: var(--wait) }
svg .back { fill: var(--good) }
svg .finding { stroke: var(--bad); stroke-width: 2 } svg .shade { fill: var(--fault); opacity: .12 }
";

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

/// A page that needs nothing else.
pub(super) fn page(about: &About, outcomes: &[Outcome]) -> String {
    let findings: usize = outcomes.iter().map(|outcome| outcome.findings.len()).sum();
    let (class, mut verdict) = match findings {
        0 if about.done == 0 => ("soft", "No round is over.".to_owned()),
        0 => ("good", "Every promise was kept.".to_owned()),
        1 => ("bad", "A promise was broken: one finding.".to_owned()),
        many => ("bad", format!("Promises were broken: {many} findings.")),
    };
    if let Some(so_far) = about.so_far() {
        verdict = format!("So far, {so_far}: {verdict}");
    }
    // Writing to a string cannot fail.
    let checks: u64 = outcomes.iter().map(|outcome| outcome.checks).sum();
    let mut page = begin("Larder: crash report", STYLE);
    let _ = write!(
        page,
        "<p class={class}><strong>{verdict}</strong></p><p>Rounds: {}; checks: {checks}; version {}. In each round programs \
         work on several mounts while things break again and again; what they were told is then held against what is \
         there.</p>",
        outcomes.len(),
        env!("CARGO_PKG_VERSION"),
    );
    let _ = write!(page, "<p class=soft>{}", escaped(&about.command));
    for (what, is) in &about.machine {
        let _ = write!(page, "; {what} {}", escaped(is));
    }
    page.push_str("</p>");
    page.push_str(
        "<h2>Faults</h2><div class=wide><table><tr><th>mode<th>fault<th>rounds<th>times<th>longest wait\
         <th>longest recovery<th>findings</tr>",
    );
    for ((mode, fault), row) in table(outcomes) {
        let class = if row.findings == 0 { "good" } else { "bad" };
        let _ = write!(
            page,
            "<tr><td>{mode}<td>{fault}<td>{}<td>{}<td>{}<td>{}<td class={class}>{}</tr>",
            row.rounds,
            row.strikes,
            seconds(row.wait),
            row.recovery.map_or("–".to_owned(), seconds),
            row.findings
        );
    }
    page.push_str("</table></div><h2>What was checked</h2><div class=wide><table><tr><th>what<th>times</tr>");
    for (what, times) in checked(outcomes) {
        let _ = write!(page, "<tr><td>{what}<td>{times}</tr>");
    }
    let places = places(outcomes);
    if !places.is_empty() {
        page.push_str(
            "</table></div><h2>Failpoints</h2><div class=wide><table><tr><th>place<th>processes died there<th>did not \
             come there in their time</tr>",
        );
        for (name, [died, missed]) in places {
            let _ = write!(page, "<tr><td>{name}<td>{died}<td>{missed}</tr>");
        }
    }
    page.push_str("</table></div><h2>Rounds</h2>");
    outcomes.iter().for_each(|outcome| round(&mut page, outcome));
    page
}

fn round(page: &mut String, outcome: &Outcome) {
    let is_bad = !outcome.findings.is_empty();
    let _ = write!(
        page,
        "<details{}><summary>{} mode, {}, seed {}: {} times in {}, longest wait {}, <span class={}>{} findings</span>\
         </summary>",
        if is_bad { " open" } else { "" },
        modes(outcome),
        faults(outcome),
        outcome.plan.seed,
        outcome.strikes.len(),
        seconds(outcome.took),
        seconds(outcome.longest_wait()),
        if is_bad { "bad" } else { "good" },
        outcome.findings.len(),
    );
    for finding in &outcome.findings {
        let (who, what) = (escaped(&finding.who), escaped(&finding.what));
        let _ = write!(page, "<p class=bad>{} {who}: {what}</p>", seconds(finding.at));
    }
    if is_bad {
        let _ = write!(page, "<p>Once more: <code>{}</code></p>", escaped(&again(outcome)));
    }
    timeline(page, outcome);
    resources(page, outcome);
    page.push_str("</details>");
}

fn timeline(page: &mut String, outcome: &Outcome) {
    let height = LANE * (outcome.work.len() + 2) as f64;
    let total = outcome.took.as_secs_f64().max(0.001);
    let at = |time: Duration| NAMES + TIME * (time.as_secs_f64() / total).min(1.0);
    let _ = write!(
        page,
        "<div class=wide><svg viewBox='0 0 {} {height}' width={} role=img aria-label='when things broke, and who waited'>",
        NAMES + TIME + 10.0,
        NAMES + TIME + 10.0
    );
    let bar = |page: &mut String, span: &Span, class: &str, top: f64, height: f64| {
        let width = (at(span.to) - at(span.from)).max(1.5);
        let _ = write!(
            page,
            "<rect class={class} x='{:.1}' y='{top:.1}' width='{width:.1}' height='{height:.1}'><title>{} to {}: {}\
             </title></rect>",
            at(span.from),
            seconds(span.from),
            seconds(span.to),
            escaped(&span.what)
        );
    };
    let name = |page: &mut String, lane: usize, text: &str| {
        let y = LANE * lane as f64 + LANE * 0.7;
        let _ = write!(page, "<text x=0 y='{y:.1}'>{}</text>", escaped(text));
    };
    name(page, 0, "what broke");
    // What is closer than the eye can tell is one bar: a page of hours must not grow with them.
    let grain = outcome.took / TIME as u32;
    for strike in &coarsen(&strikes(outcome), grain) {
        bar(page, strike, "fault", 3.0, LANE - 6.0);
        bar(page, strike, "shade", LANE, height - 2.0 * LANE);
    }
    for recovery in &coarsen(&recoveries(outcome), grain) {
        bar(page, recovery, "back", LANE - 5.0, 3.0);
    }
    for (number, work) in outcome.work.iter().enumerate() {
        let (lane, y) = (number + 1, LANE * (number as f64 + 1.5));
        name(page, lane, &format!("{} ({})", work.who, work.acknowledged));
        let _ = write!(page, "<line class=lane x1={NAMES} x2={} y1='{y:.1}' y2='{y:.1}' />", NAMES + TIME);
        let most = rates(work).map(|(_, rate)| rate).fold(0.001, f64::max);
        page.push_str("<polyline class=rate points='");
        for (time, rate) in rates(work) {
            let _ =
                write!(page, "{:.1},{:.1} ", at(time), LANE * (lane as f64 + 1.0) - 1.0 - (LANE - 3.0) * rate / most);
        }
        let _ = write!(page, "'><title>up to {most:.0} operations a second</title></polyline>");
        for pause in &coarsen(&work.pauses, grain) {
            bar(page, pause, "wait", LANE * lane as f64 + 4.0, LANE - 8.0);
        }
    }
    for finding in &outcome.findings {
        let x = at(finding.at);
        let _ = write!(page, "<line class=finding x1='{x:.1}' x2='{x:.1}' y1=0 y2={height} />");
    }
    let y = height - 4.0;
    let _ = write!(
        page,
        "<text x={NAMES} y={y}>0</text><text x={} y={y} text-anchor=end>{}</text></svg></div>\
         <p class=soft>Orange: what broke. Green: until all had looked and found what they were told, but for fsx, git, sqlite3 and tar, which first run to their end. Blue: steps of more than 100 ms. Grey: operations acknowledged a second, each lane to its own measure; in brackets all of them.</p>",
        NAMES + TIME,
        seconds(outcome.took)
    );
}

/// Operations a second at each time.
fn rates(work: &Work) -> impl Iterator<Item = (Duration, f64)> {
    let samples: Vec<_> = few_samples(&work.progress).copied().collect();
    (1..samples.len()).map(move |index| {
        let ((from, before), (to, now)) = (samples[index - 1], samples[index]);
        (to, now.saturating_sub(before) as f64 / (to.saturating_sub(from)).as_secs_f64().max(0.001))
    })
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// Memory and descriptors as a table, with the memory's curve; and the room that came back.
fn resources(page: &mut String, outcome: &Outcome) {
    if outcome.resources.is_empty() {
        return;
    }
    page.push_str(
        "<div class=wide><table><tr><th>process<th>memory<th>at first<th>at most<th>at the end<th>descriptors at first\
         <th>at most<th>at the end</tr>",
    );
    for curve in &outcome.resources {
        let (first, most, last) = (curve.first(), curve.most, curve.last());
        let class = if curve.excess().is_none() { "good" } else { "bad" };
        let _ = write!(page, "<tr><td>{}<td>", escaped(&curve.who));
        spark(page, curve);
        let _ = write!(
            page,
            "<td>{}<td>{}<td class={class}>{}<td>{}<td>{}<td class={class}>{}</tr>",
            mib(first.memory),
            mib(most.memory),
            mib(last.memory),
            first.files,
            most.files,
            last.files
        );
    }
    page.push_str("</table></div>");
    if !outcome.depots.is_empty() {
        page.push_str("<div class=wide><table><tr><th>on the disk<th>at the end<th>after all was removed<th>of it kept for clients that died</tr>");
        for depot in &outcome.depots {
            let of = [depot.full, depot.empty, depot.kept].map(mib);
            let _ = write!(page, "<tr><td>{}<td>{}</tr>", escaped(&depot.who), of.join("<td>"));
        }
        page.push_str("</table></div>");
    }
    let _ = write!(
        page,
        "<p class=soft>At the end a process may have {MORE_FILES} descriptors and {} more than at first, and {} more than \
         it had at work {} s after it began.</p>",
        mib(MORE_MEMORY),
        mib(GROWTH),
        SETTLED.as_secs()
    );
}

/// The curve of a process' memory.
fn spark(page: &mut String, curve: &Curve) {
    let (total, most) = (curve.last().at.as_secs_f64().max(0.001), curve.most.memory.max(1) as f64);
    let _ = write!(
        page,
        "<svg width=120 height=20 viewBox='0 0 120 20' role=img aria-label='memory over time'><polyline points='"
    );
    for sample in few_samples(&curve.samples) {
        let (x, y) = (120.0 * sample.at.as_secs_f64() / total, 19.0 - 18.0 * sample.memory as f64 / most);
        let _ = write!(page, "{x:.1},{y:.1} ");
    }
    page.push_str("' /></svg>");
}
