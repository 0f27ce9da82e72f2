//! Curves and distributions as pictures: SVG that is drawn at the size at which it is read.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::{colour, figure};
use crate::bench::results::{Axis, Plot};
use crate::bench::statistics::{Summary, quantile};
use crate::page::escaped;

/// The picture, and in it the place of the axes.
const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 270.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 42.0;
/// Labels on an axis, about.
const LABELS: f64 = 6.0;
/// Patterns by which lines of one colour are told apart.
const DASHES: [&str; 4] = ["", "6 4", "2 3", "9 3 2 3"];

/// What this adds to the look of a page.
pub(super) const STYLE: &str = "
.curve svg { width: 100%; max-width: 620px; height: auto; display: block }
.curve .grid { stroke: var(--line); stroke-width: 1 } .curve polyline { fill: none; stroke-width: 2 }
.key { display: flex; flex-wrap: wrap; gap: .1rem 1rem; font-size: .85rem } .key svg { width: 26px; height: 10px }
";

/// From values to places in the picture.
struct Scale {
    low: f64,
    high: f64,
    is_log: bool,
    from: f64,
    to: f64,
}

impl Scale {
    /// So that all of these are on it.
    fn of(values: impl Iterator<Item = f64>, axis: &Axis, from: f64, to: f64) -> Scale {
        let known: Vec<f64> = values.filter(|value| !axis.is_log || *value > 0.0).collect();
        let low = known.iter().copied().fold(f64::INFINITY, f64::min);
        let high = known.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let (mut low, mut high) = if low <= high { (low, high) } else { (1.0, 1.0) };
        if axis.is_log {
            if high / low < 2.0 {
                (low, high) = (low / 2.0, high * 2.0);
            }
        } else {
            low = low.min(0.0);
            if high <= low {
                high = low + 1.0;
            }
        }
        Scale { low, high, is_log: axis.is_log, from, to }
    }

    fn at(&self, value: f64) -> f64 {
        let part = if self.is_log {
            (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        self.from + part * (self.to - self.from)
    }

    /// Values worth a label.
    fn labels(&self) -> Vec<f64> {
        if self.is_log {
            let decades = (self.low.log10().floor() as i32)..=(self.high.log10().ceil() as i32);
            let steps: &[f64] = if (self.high / self.low).log10() < LABELS / 2.0 { &[1.0, 2.0, 5.0] } else { &[1.0] };
            let all = decades.flat_map(|decade| steps.iter().map(move |step| step * 10f64.powi(decade)));
            // Rounding must not take away the ends.
            return all.filter(|value| *value >= self.low * 0.999 && *value <= self.high * 1.001).collect();
        }
        let rough = (self.high - self.low) / LABELS;
        let decade = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].iter().map(|step| step * decade).find(|step| *step >= rough);
        let step = step.unwrap_or(10.0 * decade);
        let (first, last) = ((self.low / step).ceil() as i64, (self.high / step * 1.000_001).floor() as i64);
        (first..=last).map(|number| number as f64 * step).collect()
    }
}

/// How a line looks: modes have the same colour in all pictures.
fn look(name: &str, place: usize, same: &mut BTreeMap<String, usize>) -> (usize, &'static str) {
    let of = name.split([',', ':']).next().unwrap_or(name).trim();
    let colour = colour::of(of, place);
    let before = same.entry(of.to_owned()).or_default();
    let dash = DASHES[*before % DASHES.len()];
    *before += 1;
    (colour, dash)
}

/// A line: its points, and how far the values of each lie apart.
fn points(plot: &Plot, name: &str) -> Vec<(f64, Summary)> {
    let level = |value: f64| Summary { median: value, low: value, high: value, range: (value, value), count: 1 };
    if plot.is_distribution() {
        let values = plot.sorted(name);
        let count = values.len() as f64;
        let step = |(place, value): (usize, &f64)| (*value, level(100.0 * (place + 1) as f64 / count));
        return values.iter().enumerate().map(step).collect();
    }
    plot.of[name].iter().filter_map(|point| Some((point.x, Summary::of(&point.values)?))).collect()
}

/// The picture of a plot, with its name and what its lines are.
pub(super) fn picture(page: &mut String, plot: &Plot) {
    let lines: Vec<(&String, Vec<(f64, Summary)>)> =
        plot.of.keys().map(|name| (name, points(plot, name))).filter(|(_, points)| !points.is_empty()).collect();
    let all = || lines.iter().flat_map(|(_, points)| points);
    let x = Scale::of(all().map(|(x, _)| *x), &plot.x, LEFT, WIDTH - RIGHT);
    let y = Scale::of(all().flat_map(|(_, of)| [of.low, of.high]), &plot.y, HEIGHT - BOTTOM, TOP);
    let unit = |axis: &Axis| if axis.unit.is_empty() { String::new() } else { format!(" ({})", axis.unit) };
    // Writing to a string cannot fail.
    let _ = write!(
        page,
        "<figure class=curve><figcaption>{0}</figcaption><svg viewBox='0 0 {WIDTH} {HEIGHT}' role=img \
         aria-label='{0}: {1} by {2}'>",
        escaped(&plot.name),
        escaped(&plot.y.label),
        escaped(&plot.x.label),
    );
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    for label in y.labels() {
        let at = y.at(label);
        let _ = write!(page, "<line class=grid x1={LEFT} x2={right} y1={at:.1} y2={at:.1} />");
        let (end, middle) = (LEFT - 5.0, at + 4.0);
        let _ = write!(page, "<text x={end} y={middle:.1} text-anchor=end>{}</text>", short(label));
    }
    for label in x.labels() {
        let (at, below) = (x.at(label), bottom + 15.0);
        let _ = write!(page, "<line class=grid x1={at:.1} x2={at:.1} y1={TOP} y2={bottom} />");
        let _ = write!(page, "<text x={at:.1} y={below} text-anchor=middle>{}</text>", short(label));
    }
    let (middle, last) = ((LEFT + right) / 2.0, HEIGHT - 6.0);
    let _ = write!(
        page,
        "<text x={middle} y={last} text-anchor=middle>{}{}</text>",
        escaped(&plot.x.label),
        escaped(&unit(&plot.x))
    );
    let mut key = String::new();
    let mut same = BTreeMap::new();
    for (place, (name, points)) in lines.iter().enumerate() {
        let (colour, dash) = look(name, place, &mut same);
        let stroke = format!("stroke='var(--c{colour})'");
        let mut path = String::new();
        let mut before: Option<f64> = None;
        for (at, of) in points {
            // A share stays what it was until the next value.
            if plot.is_distribution() {
                let _ = write!(path, "{:.1},{:.1} ", x.at(*at), y.at(before.unwrap_or(0.0)));
                before = Some(of.median);
            }
            let _ = write!(path, "{:.1},{:.1} ", x.at(*at), y.at(of.median));
        }
        // Beside what was predicted, what was measured has no line.
        let has_line = !name.ends_with(", measured");
        if has_line {
            let _ = write!(page, "<polyline {stroke} stroke-dasharray='{dash}' points='{}' />", path.trim_end());
        }
        if !plot.is_distribution() {
            for (at, of) in points {
                let at = x.at(*at);
                let (low, high, middle) = (y.at(of.low), y.at(of.high), y.at(of.median));
                let _ = write!(page, "<line {stroke} x1={at:.1} x2={at:.1} y1={low:.1} y2={high:.1} />");
                let _ = write!(page, "<circle cx={at:.1} cy={middle:.1} r=2.5 fill='var(--c{colour})' />");
            }
        }
        let look = if has_line {
            format!("<line x1=0 x2=26 y1=5 y2=5 stroke-width=2 {stroke} stroke-dasharray='{dash}' />")
        } else {
            format!("<circle cx=13 cy=5 r=3 fill='var(--c{colour})' />")
        };
        let _ = write!(key, "<span><svg viewBox='0 0 26 10'>{look}</svg> {}</span>", escaped(name));
    }
    let _ = write!(
        page,
        "</svg><div class=key><span class=soft>{}{}:</span>{key}</div></figure>",
        escaped(&plot.y.label),
        escaped(&unit(&plot.y))
    );
}

/// The values behind a picture.
pub(super) fn table(page: &mut String, plot: &Plot) {
    page.push_str("<div class=wide><table><tr><th>");
    if plot.is_distribution() {
        page.push_str("<th>values<th>median<th>90 %<th>99 %<th>most");
        for name in plot.of.keys() {
            let values = plot.sorted(name);
            let _ = write!(page, "<tr><td>{}<td>{}", escaped(name), values.len());
            for part in [0.5, 0.9, 0.99, 1.0] {
                let _ = write!(page, "<td>{}", quantile(&values, part).map_or("–".to_owned(), figure));
            }
        }
    } else {
        let mut places: Vec<f64> = plot.of.values().flatten().map(|point| point.x).collect();
        places.sort_by(f64::total_cmp);
        places.dedup();
        for place in &places {
            let _ = write!(page, "<th>{} {}", short(*place), escaped(&plot.x.unit));
        }
        for name in plot.of.keys() {
            let _ = write!(page, "<tr><td>{}", escaped(name));
            for place in &places {
                let _ = write!(page, "<td>{}", plot.at(name, *place).map_or("–".to_owned(), figure));
            }
        }
    }
    page.push_str("</table></div>");
}

/// A value on an axis: with no more digits than it needs.
pub(super) fn short(value: f64) -> String {
    for (least, name) in [(1e6, "M"), (1e3, "k")] {
        if value.abs() >= least && (least > 1e3 || value.abs() >= 1e4) {
            return format!("{}{name}", trimmed(value / least));
        }
    }
    trimmed(value)
}

fn trimmed(value: f64) -> String {
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_where_the_axes_say() {
        let axis = Axis::log("clients", "");
        let scale = Scale::of([1.0, 10_000.0].into_iter(), &axis, 0.0, 400.0);
        assert_eq!(scale.labels(), [1.0, 10.0, 100.0, 1000.0, 10_000.0]);
        assert!((scale.at(100.0) - 200.0).abs() < 1e-6);
        let scale = Scale::of([20.0, 90.0].into_iter(), &Axis::linear("share", "%"), 100.0, 0.0);
        assert_eq!(scale.labels(), [0.0, 20.0, 40.0, 60.0, 80.0]);
        assert!((scale.at(45.0) - 50.0).abs() < 1e-6);
        let shown: Vec<String> = [0.0001, 0.5, 20.0, 2000.0, 10_000.0, 1_000_000.0].map(short).into();
        assert_eq!(shown, ["0.0001", "0.5", "20", "2000", "10k", "1M"]);
    }

    #[test]
    fn a_curve_goes_through_the_medians_and_a_distribution_up_in_steps() {
        let mut plot = Plot::new("q", "a <curve>", "", Axis::linear("x", "s"), Axis::linear("y", "s"));
        for (x, value) in [(0.0, 1.0), (0.0, 3.0), (0.0, 2.0), (10.0, 4.0)] {
            plot.note("afs", x, value);
        }
        let mut page = String::new();
        picture(&mut page, &plot);
        // The median of the first place is half as high as the other one.
        let (low, high) = ((TOP + HEIGHT - BOTTOM) / 2.0, TOP);
        let expected = format!("points='{LEFT:.1},{low:.1} {:.1},{high:.1}'", WIDTH - RIGHT);
        assert!(page.contains(&expected) && page.contains("a &lt;curve&gt;"), "{expected} is not in {page}");
        let mut page = String::new();
        table(&mut page, &plot);
        assert!(page.contains("<th>0 s<th>10 s<tr><td>afs<td>2.00<td>4.00"), "{page}");
        let mut plot = Plot::new("q", "a distribution", "", Axis::linear("after", "s"), Axis::share());
        [1.0, 4.0].into_iter().for_each(|value| plot.note_value("nfs", value));
        let mut page = String::new();
        picture(&mut page, &plot);
        let (ground, half) = (HEIGHT - BOTTOM, (TOP + HEIGHT - BOTTOM) / 2.0);
        let first = LEFT + (WIDTH - RIGHT - LEFT) / 4.0;
        assert!(page.contains(&format!("points='{first:.1},{ground:.1} {first:.1},{half:.1} ")), "{page}");
    }
}
