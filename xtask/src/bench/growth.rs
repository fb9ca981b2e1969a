//! What a token costs as a text grows: measured once, drawn as an SVG of two panels.

use std::fmt::Write;

use serde_json::json;

use super::system::{Bench, System};
use super::{THREADS, prompt};
use crate::failure::{Failure, Result};

/// How far the curves go, and the tokens per point.
const LONGEST: usize = 8192;
const EVERY: usize = 256;

const WIDTH: f64 = 760.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 110.0;
const PANEL: f64 = 190.0;

/// One system's points: tokens so far, microseconds per token, and for ourselves megabytes.
pub(super) struct Curve {
    system: System,
    points: Vec<(f64, f64, Option<f64>)>,
}

/// Lets every fp32 system write a text of 8,192 tokens.
pub(super) fn measure(bench: &Bench) -> Result<Vec<Curve>> {
    let mut curves = Vec::new();
    for &system in bench.systems().iter().filter(|it| it.dtype() == "float32") {
        eprintln!("bench: {LONGEST} tokens by {}", system.name());
        let task = json!({
            "task": "growth", "model": bench.bundled(), "prompt": prompt(32),
            "new_tokens": LONGEST - 32 + 1, "every": EVERY,
        });
        let answer = bench.run(system, &task, THREADS)?;
        let points = answer["points"].as_array().map_or(&[][..], Vec::as_slice);
        let points: Vec<_> = points
            .iter()
            .filter_map(|point| {
                let megabytes = point[2].as_f64().map(|bytes| bytes / 1e6);
                Some((point[0].as_f64()?, point[1].as_f64()?, megabytes))
            })
            .collect();
        if points.is_empty() {
            return Err(Failure::new(format!("{} gave no curve", system.name())));
        }
        curves.push(Curve { system, points });
    }
    Ok(curves)
}

/// Time per token for all, and below it our memory.
pub(super) fn draw(curves: &[Curve]) -> String {
    let times: Vec<(&str, Vec<(f64, f64)>)> = curves
        .iter()
        .map(|it| (it.system.name(), it.points.iter().map(|p| (p.0, p.1)).collect()))
        .collect();
    let memory: Vec<(&str, Vec<(f64, f64)>)> = curves
        .iter()
        .map(|it| (it.system.name(), it.points.iter().filter_map(|p| Some((p.0, p.2?))).collect()))
        .filter(|(_, points): &(&str, Vec<_>)| !points.is_empty())
        .collect();
    let mut body = String::new();
    panel(&mut body, 0.0, "microseconds per token", &times);
    panel(&mut body, PANEL + 70.0, "megabytes that MLX holds", &memory);
    let height = 2.0 * (PANEL + 70.0);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\" role=\"img\" \
         aria-label=\"What a token costs as the text grows\">\n\
         <style>\n\
         text {{ font: 13px system-ui, sans-serif; fill: #24292f }}\n\
         .title {{ font-weight: 600 }}\n\
         path {{ fill: none; stroke-width: 2; stroke: #8c959f }}\n\
         .ours {{ stroke: #2f81f7 }}\n\
         .axis {{ stroke: #8c959f; stroke-width: 1 }}\n\
         @media (prefers-color-scheme: dark) {{ text {{ fill: #e6edf3 }} }}\n\
         </style>\n\
         {body}</svg>\n"
    )
}

/// One set of axes from zero, with a line and a name per curve.
fn panel(svg: &mut String, top: f64, title: &str, curves: &[(&str, Vec<(f64, f64)>)]) {
    let values = || curves.iter().flat_map(|it| &it.1);
    let highest = values().map(|it| it.1).fold(f64::MIN_POSITIVE, f64::max);
    let (base, span) = (top + 30.0 + PANEL, WIDTH - LEFT - RIGHT);
    let x = |tokens: f64| LEFT + span * tokens / LONGEST as f64;
    let y = |value: f64| base - PANEL * value / highest;
    let mut text = |x: f64, y: f64, class: &str, words: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\">{words}</text>");
    };
    text(8.0, top + 18.0, "title", title);
    text(8.0, y(highest) + 4.0, "", &format!("{highest:.0}"));
    text(8.0, base, "", "0");
    for tokens in [0, LONGEST / 4, LONGEST / 2, 3 * LONGEST / 4, LONGEST] {
        text(x(tokens as f64) - 12.0, base + 18.0, "", &tokens.to_string());
    }
    for (name, points) in curves {
        if let Some(last) = points.last() {
            text(x(last.0) + 6.0, y(last.1) + 4.0, "", name);
        }
    }
    let _ = writeln!(
        svg,
        "<path class=\"axis\" d=\"M{LEFT} {:.1} V{base:.1} H{:.1}\"/>",
        y(highest),
        LEFT + span
    );
    for (index, (_, points)) in curves.iter().enumerate() {
        let class = if index == 0 { "ours" } else { "other" };
        let line: Vec<String> =
            points.iter().map(|it| format!("{:.1} {:.1}", x(it.0), y(it.1))).collect();
        let _ = writeln!(svg, "<path class=\"{class}\" d=\"M{}\"/>", line.join(" L"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_point_touches_the_top_and_memory_is_drawn_where_it_is_known() {
        let curve =
            |system, points: &[(f64, f64, Option<f64>)]| Curve { system, points: points.to_vec() };
        let svg = draw(&[
            curve(System::Ours, &[(256.0, 500.0, Some(20.0)), (8192.0, 1000.0, Some(40.0))]),
            curve(System::Transformers, &[(256.0, 2000.0, None)]),
        ]);
        assert!(svg.contains("L650.0 125.0") && svg.contains("M78.4 30.0"), "{svg}");
        assert_eq!(svg.matches("class=\"ours\"").count(), 2);
        assert_eq!(svg.matches("class=\"other\"").count(), 1);
    }
}
