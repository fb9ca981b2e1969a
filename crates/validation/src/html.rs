//! The report as one self-contained HTML page with plots.

use std::fmt::Write;

use crate::{Direction, Measure, Report};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;\
color:#222}table{border-collapse:collapse;font-variant-numeric:tabular-nums}td,th{padding:.2rem .7rem;\
text-align:right;border-bottom:1px solid #ddd}td:first-child,th:first-child{text-align:left}\
figure{display:inline-block;margin:1rem 1rem 0 0}figcaption{font-weight:600}blockquote{color:#444}";

const WIDTH: f64 = 280.0;
const HEIGHT: f64 = 160.0;
const MARGIN: f64 = 34.0;

/// What is plotted over alpha, under which title.
const PLOTS: [(&str, Measure); 6] = [
    ("Share with the wanted words", Measure::Words),
    ("Suspect share", Measure::Suspect),
    ("KL(steered ‖ base) per token", Measure::Kl),
    ("Same first choice", Measure::Top1),
    ("Projection shift", Measure::Shift),
    ("Perplexity under the base model", Measure::Perplexity),
];

const COLOURS: [(Direction, &str); 3] =
    [(Direction::Steered, "#0a6"), (Direction::Negated, "#c40"), (Direction::Random, "#888")];

impl Report {
    /// The report as a page: the table, a plot per measure, and an answer per cell.
    pub fn html(&self) -> String {
        let mut page = format!(
            "<!doctype html><meta charset=\"utf-8\"><title>Steering: validation</title>\
             <style>{STYLE}</style><h1>Steering: validation</h1><p>{}; {} prompts, {} seed(s).",
            escaped(&self.model),
            self.prompts,
            self.seeds
        );
        if let Some(wanted) = &self.wanted {
            page += &format!(" Words counted: {}.", escaped(wanted));
        }
        page += " Plots: ";
        for (direction, colour) in COLOURS {
            page += &format!("<b style=\"color:{colour}\">{}</b> ", direction.as_str());
        }
        page += "</p><table><tr>";
        let (head, rows) = self.rows();
        head.iter().for_each(|it| page += &format!("<th>{it}</th>"));
        for row in rows {
            page += "</tr><tr>";
            row.iter().for_each(|it| page += &format!("<td>{it}</td>"));
        }
        page += "</tr></table>";
        for (title, measure) in PLOTS {
            page += &self.plot(title, measure);
        }
        page += "<h2>One answer each</h2>";
        for it in &self.cells {
            let (direction, example) = (it.direction.as_str(), escaped(&it.example));
            page += &format!("<p>{direction} {}</p><blockquote>{example}</blockquote>", it.alpha);
        }
        page
    }

    /// One line per direction over alpha; empty where nothing was measured.
    fn plot(&self, title: &str, measure: Measure) -> String {
        let points = |direction: Direction| -> Vec<(f64, f64)> {
            let cells = self.cells.iter().filter(|it| it.direction == direction);
            let mut points: Vec<_> =
                cells.filter_map(|it| Some((it.alpha, it.get(measure)?))).collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            points
        };
        let all: Vec<(f64, f64)> = COLOURS.iter().flat_map(|it| points(it.0)).collect();
        let range = |values: &mut dyn Iterator<Item = f64>| {
            let finite = values.filter(|it| it.is_finite());
            let (low, high) = finite.fold((0.0_f64, 0.0_f64), |(a, b), it| (a.min(it), b.max(it)));
            (low, if high > low { high } else { low + 1.0 })
        };
        if all.is_empty() {
            return String::new();
        }
        let (left, right) = range(&mut all.iter().map(|it| it.0));
        let (low, high) = range(&mut all.iter().map(|it| it.1));
        let x = |it: f64| MARGIN + (it - left) / (right - left) * (WIDTH - 2.0 * MARGIN);
        let y =
            |it: f64| HEIGHT - MARGIN + 10.0 - (it - low) / (high - low) * (HEIGHT - 2.0 * MARGIN);
        let mut svg = format!(
            "<figure><figcaption>{title}</figcaption><svg width=\"{WIDTH}\" height=\"{HEIGHT}\" \
             font-size=\"11\" role=\"img\" aria-label=\"{title}\"><path d=\"M{} {}V{}H{}\" \
             fill=\"none\" stroke=\"#999\"/>",
            x(left),
            y(high),
            y(low),
            x(right)
        );
        for (value, at) in [(low, y(low)), (high, y(high))] {
            // Writing to a text cannot fail.
            let _ = write!(
                svg,
                "<text x=\"{}\" y=\"{at}\" text-anchor=\"end\">{value:.2}</text>",
                MARGIN - 3.0
            );
        }
        for (value, at) in [(left, x(left)), (right, x(right))] {
            let _ = write!(
                svg,
                "<text x=\"{at}\" y=\"{}\" text-anchor=\"middle\">{value}</text>",
                HEIGHT - 8.0
            );
        }
        for (direction, colour) in COLOURS {
            let line: Vec<String> = points(direction)
                .into_iter()
                .filter(|it| it.1.is_finite())
                .map(|(a, b)| format!("{:.1},{:.1}", x(a), y(b)))
                .collect();
            let _ = write!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                line.join(" ")
            );
            for point in &line {
                if let Some((a, b)) = point.split_once(',') {
                    let _ =
                        write!(svg, "<circle cx=\"{a}\" cy=\"{b}\" r=\"3\" fill=\"{colour}\"/>");
                }
            }
        }
        svg + "</svg></figure>"
    }
}

/// Text that is safe inside elements and quoted attributes.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            other => escaped.push(other),
        }
    }
    escaped
}
