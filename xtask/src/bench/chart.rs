//! The measurements as bars: an SVG written by hand.
//!
//! One panel per measurement, since their units differ. Text takes the reader's light or dark
//! colours through a media query, which holds where the file is shown as an image, too.

use std::fmt::Write;

use super::measure::{Measure, Results};
use super::report::readable;
use super::system::System;

const WIDTH: f64 = 760.0;
/// Where the bars begin, and how long the longest is; its number follows it.
const BARS_AT: f64 = 170.0;
const LONGEST: f64 = 500.0;
const BAR: f64 = 18.0;
const STEP: f64 = 24.0;
const TITLE: f64 = 34.0;

/// Draws every measurement that more than one system took part in.
pub(super) fn draw(results: &Results, systems: &[System]) -> String {
    let mut body = String::new();
    let mut y = 8.0;
    for measure in Measure::ALL {
        let bars: Vec<(System, f64)> = systems
            .iter()
            .filter_map(|&system| Some((system, results.value(measure, system)?)))
            .collect();
        if bars.len() > 1 {
            panel(&mut body, y, measure, &bars);
            y += TITLE + STEP * bars.len() as f64 + 12.0;
        }
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {y}\" width=\"{WIDTH}\" \
         height=\"{y}\" role=\"img\" aria-label=\"mlx-genkit beside transformers and mlx-lm\">\n\
         <style>\n\
         text {{ font: 13px system-ui, sans-serif; fill: #24292f }}\n\
         .title {{ font-weight: 600 }}\n\
         .ours {{ fill: #2f81f7 }}\n\
         .other {{ fill: #8c959f }}\n\
         @media (prefers-color-scheme: dark) {{\n\
         text {{ fill: #e6edf3 }}\n\
         .other {{ fill: #6e7681 }}\n\
         }}\n\
         </style>\n\
         {body}</svg>\n"
    )
}

fn panel(svg: &mut String, y: f64, measure: Measure, bars: &[(System, f64)]) {
    let better = if measure.is_rate() { "longer" } else { "shorter" };
    let (title, unit) = (measure.title(), measure.unit());
    line(svg, 8.0, y + 20.0, "title", &format!("{title} ({unit}, {better} is better)"));
    let largest = bars.iter().map(|bar| bar.1).fold(0.0, f64::max);
    for (index, &(system, value)) in bars.iter().enumerate() {
        let top = y + TITLE + STEP * index as f64;
        let length = (LONGEST * value / largest).max(1.0);
        let class = if system == System::Ours { "ours" } else { "other" };
        line(svg, 8.0, top + 14.0, "", system.name());
        let _ = writeln!(
            svg,
            "<rect x=\"{BARS_AT}\" y=\"{top}\" width=\"{length:.1}\" height=\"{BAR}\" rx=\"2\" \
             class=\"{class}\"/>"
        );
        line(svg, BARS_AT + length + 8.0, top + 14.0, "", &readable(value));
    }
}

fn line(svg: &mut String, x: f64, y: f64, class: &str, words: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\">{words}</text>");
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn bars_are_as_long_as_the_numbers_say() {
        let mut results = Results::default();
        results.add(Measure::Decode, System::Ours, &json!(8.0)).unwrap();
        results.add(Measure::Decode, System::Transformers, &json!(4.0)).unwrap();
        results.add(Measure::Prefill, System::Ours, &json!(4.0)).unwrap();
        let svg = draw(&results, &[System::Ours, System::Transformers]);
        assert!(svg.contains("width=\"500.0\"") && svg.contains("width=\"250.0\""), "{svg}");
        assert!(!svg.contains("prefill"), "one bar alone compares nothing");
    }
}
