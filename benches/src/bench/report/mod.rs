//! What was found, for people: a page of HTML, and a table for the terminal.

mod colour;
mod html;
mod plot;
mod terminal;

pub use self::html::page;
pub use self::terminal::table;

/// A figure with as many digits as mean something.
fn figure(value: f64) -> String {
    let digits = match value.abs() {
        large if large >= 100.0 => 0,
        middle if middle >= 10.0 => 1,
        small if small >= 1.0 => 2,
        tiny if tiny >= 0.01 || tiny == 0.0 => 3,
        // Two that are not zeros; times of files are as short as that.
        least => 1 + (-least.log10()).ceil().min(9.0) as usize,
    };
    let plain = format!("{value:.digits$}");
    if value.abs() < 10_000.0 { plain } else { grouped(&plain) }
}

/// Digits in groups of three.
fn grouped(digits: &str) -> String {
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_the_digits_that_count() {
        let shown: Vec<String> =
            [0.0, 0.0049, 0.0001, 0.01234, 1.2345, 12.345, 123.45, 9999.4, 12345.6, 1234567.0].map(figure).into();
        assert_eq!(
            shown,
            ["0.000", "0.0049", "0.00010", "0.012", "1.23", "12.3", "123", "9999", "12,346", "1,234,567"]
        );
    }
}
