//! Costs that explain what was measured, none of them below nothing.

/// Passes over all costs. They are few, and each pass is a few thousand multiplications.
const PASSES: usize = 20_000;

/// The costs `c`, none negative, with which `Σ row[j]·c[j]` comes closest to each `value`: least squares of the relative
/// errors, by coordinate descent (each cost in turn is set to what is best with the others as they are, or to nothing).
pub(super) fn nonnegative(rows: &[Vec<f64>], values: &[f64]) -> Vec<f64> {
    let count = rows.first().map_or(0, Vec::len);
    let mut costs = vec![0.0; count];
    // A value of nothing tells nothing about relative errors.
    let known: Vec<(Vec<f64>, f64)> = rows
        .iter()
        .zip(values)
        .filter(|(_, value)| **value > 0.0)
        .map(|(row, value)| (row.iter().map(|of| of / value).collect(), 1.0))
        .collect();
    let mut left: Vec<f64> = known.iter().map(|(_, value)| *value).collect();
    for _ in 0..PASSES {
        for place in 0..count {
            let square: f64 = known.iter().map(|(row, _)| row[place] * row[place]).sum();
            if square <= 0.0 {
                continue;
            }
            let along: f64 = known.iter().zip(&left).map(|((row, _), left)| row[place] * left).sum();
            let next = f64::max(0.0, costs[place] + along / square);
            let change = next - costs[place];
            costs[place] = next;
            known.iter().zip(&mut left).for_each(|((row, _), left)| *left -= row[place] * change);
        }
    }
    costs
}

/// How much of the values these costs do not explain: the sum of the squares of the relative errors.
pub(super) fn left_over(rows: &[Vec<f64>], values: &[f64], costs: &[f64]) -> f64 {
    let error = |(row, value): (&Vec<f64>, &f64)| {
        let explained: f64 = row.iter().zip(costs).map(|(of, cost)| of * cost).sum();
        (explained / value - 1.0).powi(2)
    };
    rows.iter().zip(values).filter(|(_, value)| **value > 0.0).map(error).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_found_and_never_negative() {
        let rows = vec![vec![100.0, 10.0, 1.0], vec![10.0, 100.0, 1.0], vec![50.0, 50.0, 1.0], vec![5.0, 0.0, 1.0]];
        let of = |costs: [f64; 3]| -> Vec<f64> {
            rows.iter().map(|row| row.iter().zip(costs).map(|(of, cost)| of * cost).sum()).collect()
        };
        let found = nonnegative(&rows, &of([2.0, 3.0, 1.0]));
        for (found, is_to_be) in found.iter().zip([2.0, 3.0, 1.0]) {
            assert!((found - is_to_be).abs() < 1e-3, "{found} instead of {is_to_be}");
        }
        // The best would be below nothing.
        let found = nonnegative(&rows, &of([2.0, 3.0, -1.0]));
        assert!(found.iter().all(|cost| *cost >= 0.0) && found[2] == 0.0, "{found:?}");
    }
}
