//! Plots as inline SVG.

use std::fmt::Write;

use crate::escaped;

const WIDTH: f64 = 280.0;
const HEIGHT: f64 = 160.0;
const MARGIN: f64 = 34.0;
/// Of a plot of bars: what is left of them, and the height of one.
const LABELS: f64 = 110.0;
const BAR: f64 = 18.0;

/// Points that are joined, in the order of their first numbers.
///
/// ```
/// use mlxgk_reports::{Line, lines};
///
/// let loss = Line::new("#06a", vec![(2.0, 0.5), (1.0, 1.0), (3.0, f64::NAN)]);
/// let svg = lines("Loss by step", &[loss]);
/// assert_eq!(svg.matches("<circle").count(), 2); // NaN has no place
/// assert_eq!(lines("Nothing", &[]), "");
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    colour: String,
    points: Vec<(f64, f64)>,
}

impl Line {
    /// A line through `(x, y)`, sorted by x here. Points that are not finite are left out.
    pub fn new(colour: impl Into<String>, mut points: Vec<(f64, f64)>) -> Self {
        points.retain(|it| it.0.is_finite() && it.1.is_finite());
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Self { colour: colour.into(), points }
    }
}

/// Lines over a common axis; both axes include 0. Empty where there is no point.
pub fn lines(title: &str, lines: &[Line]) -> String {
    let all = || lines.iter().flat_map(|it| &it.points);
    if all().next().is_none() {
        return String::new();
    }
    let (left, right) = range(all().map(|it| it.0));
    let (low, high) = range(all().map(|it| it.1));
    let x = |it: f64| MARGIN + (it - left) / (right - left) * (WIDTH - 2.0 * MARGIN);
    let y = |it: f64| HEIGHT - MARGIN + 10.0 - (it - low) / (high - low) * (HEIGHT - 2.0 * MARGIN);
    let mut svg = begun(title, WIDTH, HEIGHT);
    // Writing to a text cannot fail.
    let _ = write!(
        svg,
        "<path d=\"M{} {}V{}H{}\" fill=\"none\" stroke=\"#999\"/>",
        x(left),
        y(high),
        y(low),
        x(right)
    );
    for (value, at) in [(low, y(low)), (high, y(high))] {
        let beside = MARGIN - 3.0;
        let _ =
            write!(svg, "<text x=\"{beside}\" y=\"{at}\" text-anchor=\"end\">{value:.2}</text>");
    }
    for (value, at) in [(left, x(left)), (right, x(right))] {
        let below = HEIGHT - 8.0;
        let _ = write!(svg, "<text x=\"{at}\" y=\"{below}\" text-anchor=\"middle\">{value}</text>");
    }
    for Line { colour, points } in lines {
        let points: Vec<_> = points.iter().map(|it| (x(it.0), y(it.1))).collect();
        let joined: Vec<String> = points.iter().map(|(a, b)| format!("{a:.1},{b:.1}")).collect();
        let _ = write!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            joined.join(" ")
        );
        for (a, b) in points {
            let _ = write!(svg, "<circle cx=\"{a:.1}\" cy=\"{b:.1}\" r=\"3\" fill=\"{colour}\"/>");
        }
    }
    svg + "</svg></figure>"
}

/// One bar of a plot.
///
/// ```
/// use mlxgk_reports::{Bar, bars};
///
/// let svg = bars("Tokens per second", &[Bar::new("greedy", 120.0).interval(115.0, 124.0)]);
/// assert!(svg.contains("greedy") && svg.contains("124.000"));
/// assert_eq!(bars("Nothing", &[Bar::new("failed", f64::NAN)]), "");
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    label: String,
    value: f64,
    interval: Option<(f64, f64)>,
    colour: String,
}

impl Bar {
    /// A bar from 0 to `value`.
    pub fn new(label: impl Into<String>, value: f64) -> Self {
        Self { label: label.into(), value, interval: None, colour: "#0a6".to_owned() }
    }

    /// Draws a line from `low` to `high` over it.
    #[must_use]
    pub fn interval(self, low: f64, high: f64) -> Self {
        Self { interval: Some((low, high)), ..self }
    }

    /// Another colour.
    #[must_use]
    pub fn colour(self, colour: impl Into<String>) -> Self {
        Self { colour: colour.into(), ..self }
    }
}

/// Horizontal bars under one another, over an axis that includes 0. Empty where no value is finite.
pub fn bars(title: &str, bars: &[Bar]) -> String {
    let bars: Vec<&Bar> = bars.iter().filter(|it| it.value.is_finite()).collect();
    if bars.is_empty() {
        return String::new();
    }
    let ends = |it: &&Bar| {
        let (low, high) = it.interval.unwrap_or((it.value, it.value));
        [it.value, low, high]
    };
    let (left, right) = range(bars.iter().flat_map(ends));
    let width = WIDTH + LABELS;
    let x = |it: f64| LABELS + (it - left) / (right - left) * (WIDTH - MARGIN);
    let height = BAR * bars.len() as f64 + 22.0;
    let mut svg = begun(title, width, height);
    for (row, bar) in bars.iter().enumerate() {
        let top = BAR * row as f64 + 3.0;
        let (begin, end) = (x(bar.value.min(0.0)), x(bar.value.max(0.0)));
        let middle = top + BAR / 2.0 - 2.0;
        let _ = write!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text><rect x=\"{begin:.1}\" y=\"{top}\" \
             width=\"{:.1}\" height=\"{}\" fill=\"{}\"/>",
            LABELS - 6.0,
            top + 11.0,
            escaped(&bar.label),
            end - begin,
            BAR - 5.0,
            bar.colour
        );
        if let Some((low, high)) = bar.interval.filter(|it| it.0.is_finite() && it.1.is_finite()) {
            let _ = write!(
                svg,
                "<path d=\"M{:.1} {middle}H{:.1}\" stroke=\"#222\" stroke-width=\"1.5\"/>",
                x(low),
                x(high)
            );
        }
    }
    let below = height - 5.0;
    let zero = x(0.0);
    let _ = write!(svg, "<path d=\"M{zero:.1} 0V{}\" stroke=\"#999\"/>", height - 18.0);
    for (value, anchor) in [(left, "start"), (right, "end")] {
        let at = x(value);
        let _ = write!(
            svg,
            "<text x=\"{at:.1}\" y=\"{below}\" text-anchor=\"{anchor}\">{value:.3}</text>"
        );
    }
    svg + "</svg></figure>"
}

fn begun(title: &str, width: f64, height: f64) -> String {
    let title = escaped(title);
    format!(
        "<figure><figcaption>{title}</figcaption><svg width=\"{width}\" height=\"{height}\" \
         font-size=\"11\" role=\"img\" aria-label=\"{title}\">"
    )
}

/// From the least to the greatest of the values and 0; one wide where all are 0.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let finite = values.filter(|it| it.is_finite());
    let (low, high) = finite.fold((0.0_f64, 0.0_f64), |(a, b), it| (a.min(it), b.max(it)));
    (low, if high > low { high } else { low + 1.0 })
}
