//! Plots as SVG that grows with the page: places are percentages, so that text keeps its size on a phone.

use std::fmt::Write as _;

use super::text::human;
use crate::report::{BarOf, Distribution, Figure};

/// The range that the plots of one figure share. `0 <= max`
#[derive(Clone, Copy)]
pub(super) struct Scale {
    max: f64,
}

impl Scale {
    /// From 0 to over everything that is drawn.
    pub(super) fn of<'a>(figures: impl Iterator<Item = &'a Figure>) -> Self {
        let max = figures.flat_map(|figure| {
            let floor = figure.floor.as_ref().map_or(0.0, |floor| floor.spread.max);
            [figure.spread.max, floor, limit(figure).unwrap_or_default()]
        });
        let max = max.filter(|value| value.is_finite()).fold(0.0, f64::max);
        Self { max: if max > 0.0 { max * 1.04 } else { 1.0 } }
    }

    fn percent(self, value: f64) -> f64 {
        if value.is_finite() { (value / self.max * 100.0).clamp(0.0, 100.0) } else { 0.0 }
    }
}

/// The bar in the figure's unit.
fn limit(figure: &Figure) -> Option<f64> {
    let bar = figure.bar?;
    match bar.of {
        BarOf::Value => Some(bar.limit),
        BarOf::Ratio => Some(bar.limit * figure.floor.as_ref()?.spread.median),
    }
}

/// A figure's range over its floor's, and its bar.
pub(super) fn range(figure: &Figure, scale: Scale) -> String {
    let height = if figure.floor.is_some() { 27 } else { 15 };
    let label = format!("{} {}", human(figure.spread.median, figure.unit), figure.id);
    let mut svg = format!("<svg height=\"{height}\" role=\"img\" aria-label=\"{}\">", super::escaped(&label));
    let mut band = |y: f64, class: &str, min: f64, median: f64, max: f64| {
        let (from, middle, to) = (scale.percent(min), scale.percent(median), scale.percent(max));
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"0\" x2=\"100%\" y1=\"{y}\" y2=\"{y}\"/><rect class=\"{class}-range\" x=\"0\" width=\"{middle:.2}%\" y=\"{}\" \
             height=\"2\"/><rect class=\"{class}-range\" x=\"{from:.2}%\" width=\"{:.2}%\" y=\"{}\" height=\"8\" rx=\"2\"/><svg x=\"{middle:.2}%\" \
             overflow=\"visible\"><rect class=\"{class}-median\" x=\"-2\" width=\"4\" y=\"{}\" height=\"12\" rx=\"1.5\"/></svg>",
            y - 1.0,
            (to - from).max(0.3),
            y - 4.0,
            y - 6.0,
        );
    };
    band(7.0, "clip", figure.spread.min, figure.spread.median, figure.spread.max);
    if let Some(floor) = &figure.floor {
        band(20.0, "floor", floor.spread.min, floor.spread.median, floor.spread.max);
    }
    if let Some(limit) = limit(figure) {
        let at = scale.percent(limit);
        let _ = write!(svg, "<line class=\"bar-line\" x1=\"{at:.2}%\" x2=\"{at:.2}%\" y1=\"-1\" y2=\"15\"/>");
    }
    svg + "</svg>"
}

/// A score beside the bar: 1 is the bar and stands in the middle, twice as good at the right end.
pub(super) fn score(score: f64) -> String {
    let at = if score.is_finite() && score > 0.0 { (50.0 + 50.0 * score.log2()).clamp(1.0, 99.0) } else { 1.0 };
    let (from, to) = if at < 50.0 { (at, 50.0) } else { (50.0, at) };
    format!(
        "<svg height=\"14\" aria-hidden=\"true\"><line class=\"grid\" x1=\"0\" x2=\"100%\" y1=\"7\" y2=\"7\"/><rect class=\"clip-range\" x=\"{from:.2}%\" \
         width=\"{:.2}%\" y=\"5\" height=\"4\"/><line class=\"bar-line\" x1=\"50%\" x2=\"50%\" y1=\"0\" y2=\"14\"/><circle class=\"clip-median\" \
         cx=\"{at:.2}%\" cy=\"7\" r=\"5\"/></svg>",
        to - from
    )
}

/// The spreads of single operations, one curve each, over a logarithmic scale of time.
pub(super) fn curves(figure: &Figure) -> String {
    let curves: Vec<&Distribution> = figure.distributions.iter().filter(|curve| curve.points.len() > 1).collect();
    let values =
        || curves.iter().flat_map(|curve| curve.points.iter().map(|point| point.1)).filter(|value| value.is_finite() && *value > 0.0);
    let (min, max) = (values().fold(f64::INFINITY, f64::min), values().fold(0.0, f64::max));
    if !(min > 0.0 && max >= min) {
        return String::new();
    }
    // Not so narrow that a few percent look like worlds.
    let (low, high) = (min.log10().min(max.log10() - 0.3) - 0.03, max.log10() + 0.03);
    let x = |value: f64| ((value.max(min).log10() - low) / (high - low) * 100.0).clamp(0.0, 100.0);
    let mut svg = String::new();
    let ticks = ticks(low, high);
    for percent in [0.0, 25.0, 50.0, 75.0, 100.0] {
        let y = 100.0 - percent;
        let _ = write!(svg, "<line class=\"grid\" x1=\"0\" x2=\"100%\" y1=\"{y}%\" y2=\"{y}%\"/>");
    }
    for tick in &ticks {
        let _ = write!(svg, "<line class=\"grid\" x1=\"{0:.2}%\" x2=\"{0:.2}%\" y1=\"0\" y2=\"100%\"/>", x(*tick));
    }
    let mut key = String::new();
    svg += "<svg viewBox=\"0 0 100 100\" preserveAspectRatio=\"none\" width=\"100%\" height=\"100%\">";
    for (number, curve) in curves.iter().enumerate().rev() {
        let class = if number == 0 { "own" } else { "other" };
        let points: Vec<String> =
            curve.points.iter().map(|(percent, value)| format!("{:.2},{:.2}", x(*value), 100.0 - percent.clamp(0.0, 100.0))).collect();
        let _ = write!(svg, "<polyline class=\"curve {class}\" points=\"{}\"/>", points.join(" "));
    }
    svg += "</svg>";
    for (number, curve) in curves.iter().enumerate() {
        let swatch = if number == 0 { "background:var(--clip)" } else { "background:var(--floor)" };
        let at = |wanted: f64| curve.points.iter().find(|point| point.0 >= wanted).map_or(0.0, |point| point.1);
        let (p50, p99) = (human(at(50.0), figure.unit), human(at(99.0), figure.unit));
        let _ = write!(
            key,
            "<span><i style=\"height:.25rem;vertical-align:middle;{swatch}\"></i>{}: p50 {p50}, p99 {p99}</span>",
            super::escaped(&curve.name)
        );
    }
    let labels: String = ticks.iter().fold(String::new(), |labels, tick| {
        labels + &format!("<span style=\"left:{:.2}%\">{}</span>", x(*tick), super::text::tick(*tick, figure.unit))
    });
    format!(
        "<div class=\"key\">{key}</div><div class=\"plot-box\"><span class=\"y\" style=\"top:0\">all</span><span class=\"y\" style=\"top:80px\">half</span>\
         <svg height=\"160\" role=\"img\" aria-label=\"spread of single operations\">{svg}</svg><div class=\"ticks\">{labels}</div></div>"
    )
}

/// 1, 2 and 5 of each power of ten between two logarithms; at most seven of them.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let steps: &[f64] = if high - low > 2.0 {
        &[1.0]
    } else if high - low > 1.0 {
        &[1.0, 3.0]
    } else {
        &[1.0, 1.5, 2.0, 3.0, 5.0, 7.0]
    };
    let powers = (low.floor() as i32)..=(high.ceil() as i32);
    let all = powers.flat_map(|power| steps.iter().map(move |step| step * 10f64.powi(power)));
    let inside: Vec<f64> = all.filter(|tick| (low..=high).contains(&tick.log10())).collect();
    let every = inside.len().div_ceil(7).max(1);
    inside.into_iter().step_by(every).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Unit;

    /// Claim: ticks are few, round and inside, whatever the range.
    #[test]
    fn ticks_are_few_and_inside() {
        for (low, high) in [(0.0, 0.4), (-1.0, 3.0), (2.2, 2.9), (-3.0, 9.0), (1.0, 2.5)] {
            let ticks = ticks(low, high);
            assert!((1..=7).contains(&ticks.len()), "{low} {high} {ticks:?}");
            assert!(ticks.iter().all(|tick| (low..=high).contains(&tick.log10())), "{ticks:?}");
        }
    }

    /// Claim: what is drawn lies between the left and the right edge, even for values that are no numbers.
    #[test]
    fn places_are_on_the_page() {
        let mut figure = Figure::new("x.y", "x", Unit::Milliseconds, &[1.0, 2.0]).floor("floor", &[1.5]).bar_of_ratio(2.0);
        let scale = Scale::of(std::iter::once(&figure));
        assert!((scale.percent(2.0) - 2.0 / 3.12 * 100.0).abs() < 1e-6);
        figure.spread.max = f64::NAN;
        assert!(!range(&figure, scale).contains("NaN"));
        assert!(!score(f64::NAN).contains("NaN") && !score(0.0).contains("inf"));
    }
}
