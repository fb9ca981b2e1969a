//! A curve of losses as an SVG picture, without a plotting library.

use std::fmt::Write;

const SIZE: (f64, f64) = (720.0, 360.0);
const MARGIN: (f64, f64) = (56.0, 28.0);

/// The losses of steps, and where there are any those of held-out data, `(step, loss)` each, as the text of
/// an SVG file. Losses that are not finite are left out.
pub fn loss_plot(training: &[(u64, f64)], held_out: &[(u64, f64)]) -> String {
    let finite = |points: &[(u64, f64)]| -> Vec<(f64, f64)> {
        points.iter().filter(|it| it.1.is_finite()).map(|it| (it.0 as f64, it.1)).collect()
    };
    let (training, held_out) = (finite(training), finite(held_out));
    let all = || training.iter().chain(&held_out);
    let last = all().map(|it| it.0).fold(1.0, f64::max);
    let most = all().map(|it| it.1).fold(0.0, f64::max).max(1e-6) * 1.05;
    let (width, height) = (SIZE.0 - 2.0 * MARGIN.0, SIZE.1 - 2.0 * MARGIN.1);
    let x = |step: f64| MARGIN.0 + step / last * width;
    let y = |loss: f64| MARGIN.1 + (1.0 - loss / most) * height;
    let mut svg = String::new();
    // Writing to a String cannot fail.
    let _ = write!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        SIZE.0, SIZE.1
    );
    for part in 0..=4 {
        let loss = most * f64::from(part) / 4.0;
        let at = y(loss);
        let _ = writeln!(
            svg,
            "<path d=\"M{:.1} {at:.1}H{:.1}\" stroke=\"#ddd\"/><text x=\"{:.1}\" y=\"{:.1}\" \
             text-anchor=\"end\">{loss:.2}</text>",
            MARGIN.0,
            SIZE.0 - MARGIN.0,
            MARGIN.0 - 6.0,
            at + 4.0
        );
    }
    let bottom = SIZE.1 - 8.0;
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{bottom}\" text-anchor=\"end\">step {last}</text>",
        SIZE.0 - MARGIN.0
    );
    for (points, colour, name, place) in
        [(&training, "#1f77b4", "training", 0.0), (&held_out, "#d62728", "held out", 90.0)]
    {
        if points.is_empty() {
            continue;
        }
        let line: Vec<String> =
            points.iter().map(|it| format!("{:.1},{:.1}", x(it.0), y(it.1))).collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>\n<text \
             x=\"{:.1}\" y=\"{bottom}\" fill=\"{colour}\">{name}</text>",
            line.join(" "),
            MARGIN.0 + place
        );
    }
    svg.push_str("</svg>\n");
    svg
}
