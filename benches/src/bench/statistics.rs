//! Medians, and what is beyond the noise.

/// What can be said of several values of one thing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// Half of the values are below.
    pub median: f64,
    /// A quarter is below.
    pub low: f64,
    /// A quarter is above.
    pub high: f64,
    /// The least and the most of them.
    pub range: (f64, f64),
    /// How many there are.
    pub count: usize,
}

impl Summary {
    /// Of these values; `None` if there are none.
    pub fn of(values: &[f64]) -> Option<Summary> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |part: f64| quantile(&sorted, part);
        let range = (at(0.0)?, at(1.0)?);
        Some(Summary { median: at(0.5)?, low: at(0.25)?, high: at(0.75)?, range, count: sorted.len() })
    }

    /// How far the values lie apart, as a part of the median: half the distance of the quartiles.
    pub fn spread(&self) -> f64 {
        if self.median == 0.0 { 0.0 } else { (self.high - self.low) / 2.0 / self.median.abs() }
    }

    /// The standard error of the median, from the distance of the quartiles (for a normal distribution that is 1.349
    /// standard deviations, and the error of a median 1.2533 times that of a mean).
    fn error(&self) -> f64 {
        1.2533 * (self.high - self.low) / 1.349 / (self.count as f64).sqrt()
    }
}

/// The value below which this part of the sorted values lies, between two of them where it must.
pub fn quantile(sorted: &[f64], part: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let place = part.clamp(0.0, 1.0) * last as f64;
    let (below, above) = (sorted.get(place.floor() as usize)?, sorted.get(place.ceil() as usize)?);
    Some(below + (above - below) * place.fract())
}

/// Changes below this are not worth a word, however sure they are.
const TRIFLE: f64 = 0.05;
/// Standard errors that two medians must be apart.
const SURE: f64 = 3.0;
/// Rounds without which nothing is said.
pub const LEAST: usize = 3;
/// Rounds from which on quartiles tell the error well enough. With fewer, all rounds of one run must also be on the same
/// side of all rounds of the other: of two alike with five rounds each that happens once in 126 times.
const MANY: usize = 12;

/// By what factor `new` is other than `old`, if that is beyond the noise of both.
pub fn changed(old: &Summary, new: &Summary) -> Option<f64> {
    if old.median <= 0.0 || new.median <= 0.0 || old.count < LEAST || new.count < LEAST {
        return None;
    }
    let factor = new.median / old.median;
    let apart = (new.median - old.median).abs();
    let noise = old.error().hypot(new.error());
    let overlap = old.range.0 <= new.range.1 && new.range.0 <= old.range.1;
    if overlap && old.count.min(new.count) < MANY {
        return None;
    }
    (apart > SURE * noise && (factor - 1.0).abs() > TRIFLE).then_some(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_between_values() {
        let summary = Summary::of(&[4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!((summary.median, summary.low, summary.high), (2.5, 1.75, 3.25));
        assert_eq!(Summary::of(&[7.0]).unwrap().median, 7.0);
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn a_change_is_named_when_it_is_beyond_the_noise_of_both() {
        let of = |values: &[f64]| Summary::of(values).unwrap();
        let old = of(&[10.0, 10.1, 9.9, 10.0, 10.2]);
        assert_eq!(changed(&old, &of(&[10.3, 10.4, 10.2, 10.3, 10.5])), None, "a trifle");
        assert!((changed(&old, &of(&[12.0, 12.1, 11.9, 12.0, 12.2])).unwrap() - 1.2).abs() < 1e-9);
        assert_eq!(changed(&old, &of(&[8.0, 16.0, 12.0, 9.0, 15.0])), None, "it may be chance");
        assert_eq!(changed(&old, &of(&[10.2, 12.1, 12.0, 12.0, 12.2])), None, "one round was as before");
        assert_eq!(changed(&old, &of(&[20.0, 20.0])), None, "too few to tell");
    }
}
