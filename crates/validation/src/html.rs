//! The report as one self-contained HTML page with plots.

use mlxgk_reports::{Line, Page, lines};

use crate::{Direction, Measure, Report};

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
        let mut page = Page::new("Steering: validation");
        page.text(&format!("{}; {} prompts, {} seed(s).", self.model, self.prompts, self.seeds));
        if let Some(wanted) = &self.wanted {
            page.text(&format!("Words counted: {wanted}."));
        }
        let legend = COLOURS.map(|(direction, colour)| {
            format!("<b style=\"color:{colour}\">{}</b> ", direction.as_str())
        });
        page.html(&format!("<p>Plots: {}</p>", legend.concat())).table(&self.table());
        for (title, measure) in PLOTS {
            let line = |(direction, colour)| {
                let cells = self.cells.iter().filter(|it| it.direction == direction);
                let point = |it: &crate::Cell| Some((it.alpha, it.get(measure)?));
                Line::new(colour, cells.filter_map(point).collect())
            };
            page.svg(&lines(title, &COLOURS.map(line)));
        }
        page.heading("One answer each");
        for it in &self.cells {
            page.quote(&format!("{} {}", it.direction.as_str(), it.alpha), &it.example);
        }
        page.to_string()
    }
}
