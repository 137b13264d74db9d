//! The tables of docs/performance.md.

use super::{Bar, Better, Figure, Floor, Report, Spread, Unit};

/// The first two lines of each table.
pub const HEAD: &str = "| figure | median (min .. max) | floor | ratio | bar |\n|---|---|---|---|---|\n";

/// `report` as docs/performance.md has it: machine, image, the figures, what the floors are, and what was left out.
pub(super) fn page(report: &Report) -> String {
    let mut text = format!("{}\\\n{}\n\n{HEAD}", report.machine, report.image);
    report.figures.iter().for_each(|figure| text += &row(figure));
    let mut floors: Vec<&str> = Vec::new();
    for floor in report.figures.iter().filter_map(|figure| figure.floor.as_ref()) {
        if !floors.contains(&floor.what.as_str()) {
            floors.push(&floor.what);
        }
    }
    if !floors.is_empty() {
        text += "\nThe floors:\n\n";
    }
    for what in floors {
        let of = |figure: &&Figure| figure.floor.as_ref().is_some_and(|floor| floor.what == what);
        let ids: Vec<_> = report.figures.iter().filter(of).map(|figure| format!("`{}`", figure.id)).collect();
        text += &format!("* {what}: {}\n", ids.join(", "));
    }
    for skipped in &report.skipped {
        text += &format!("\nskipped: {skipped}\n");
    }
    text
}

fn row(figure: &Figure) -> String {
    let Figure { id, what, temperature, spread, unit, better, .. } = figure;
    let what = format!("{what}{}", temperature.as_str()).replace('|', "\\|");
    let floor = figure.floor.as_ref().map_or_else(String::new, |Floor { spread, .. }| range(*spread, *unit));
    let ratio = figure.ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}"));
    let bar = figure.bar.as_ref().map_or_else(String::new, |bar| bar_text(bar, *better));
    format!("| `{id}` {what} | {} | {floor} | {ratio} | {bar} |\n", range(*spread, *unit))
}

/// `486 (476 .. 490) MB/s`
fn range(spread: Spread, unit: Unit) -> String {
    let Spread { min, median, max, runs } = spread;
    let ends = if runs > 1 { format!(" ({} .. {})", three(min), three(max)) } else { String::new() };
    format!("{}{ends}{}", three(median), unit.as_str())
}

/// `>= 0.6: met`, of the ratio where there is one.
fn bar_text(bar: &Bar, better: Better) -> String {
    let sign = if better == Better::More { ">=" } else { "<=" };
    format!("{sign} {}: {}", three(bar.limit), if bar.met { "met" } else { "**not met**" })
}

/// Three digits that matter, more of a whole number, and no zeros that say nothing.
fn three(value: f64) -> String {
    let decimals = match value.abs() {
        0.0 => 0,
        size => (2 - size.log10().floor() as i32).clamp(0, 6),
    };
    let text = format!("{value:.*}", decimals as usize);
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::report::Temperature;

    const PAGE: &str = include_str!("../../../docs/performance.md");

    /// Claim: a figure is a row as docs/performance.md has it, of a rate and of a time, with what it reached and what it did not.
    #[test]
    fn a_row_is_one_of_the_page() {
        let rate = Figure::new("read.x", "536 MB, FUSE", Unit::MegabytesPerSecond, &[527.0, 547.2, 605.0]);
        let rate = rate.floor("inflate", &[677.0, 676.0, 680.0]).bar_of_ratio(0.9).temperature(Temperature::Cold);
        let expected = "| `read.x` 536 MB, FUSE, cold | 547 (527 .. 605) MB/s | 677 (676 .. 680) MB/s | 0.81 | >= 0.9: **not met** |\n";
        assert_eq!(row(&rate), expected);
        let memory = Figure::new("memory.y", "a|b", Unit::Mebibytes, &[0.0488]).bar_of_value(2.0);
        assert_eq!(row(&memory), "| `memory.y` a\\|b | 0.0488 MiB |  |  | <= 2: met |\n");
    }

    /// Claim: three digits that matter are shown, of a whole number all.
    #[test]
    fn three_digits_matter() {
        let shown = [0.0, 1.0, 22.96, 12345.6, 0.04741, -0.684, 161.2, 99.99].map(three);
        assert_eq!(shown, ["0", "1", "23", "12346", "0.0474", "-0.684", "161", "100"]);
    }

    /// Claim: every table of figures on the page has these columns, and every figure there its words.
    #[test]
    fn the_page_has_these_columns_and_words() {
        let rows: Vec<_> = PAGE.lines().filter(|line| line.starts_with("| `") && line.matches(" | ").count() == 4).collect();
        assert!(rows.len() > 50 && PAGE.matches(HEAD).count() >= 5, "{} rows", rows.len());
        assert_eq!(PAGE.matches("| figure |").count(), PAGE.matches(HEAD).count(), "a table with other columns");
        for row in rows {
            let words = row.trim_start_matches("| `").split_once('`').unwrap().1.split_once(" | ").unwrap().0;
            assert!(words.trim().len() > 3, "a figure without a word: {row}");
        }
    }
}
