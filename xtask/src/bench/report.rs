//! The table and the page around it.

use super::machine::Machine;
use super::measure::{Measure, Results};
use super::system::{Bench, System};
use super::{FULL, SLOW_TOKENS, THREADS};

/// One line per measurement: every system's number, our ratio to each peer, and the goals.
pub(super) fn table(results: &Results, systems: &[System]) -> String {
    let peers: Vec<System> = systems
        .iter()
        .copied()
        .filter(|it| !matches!(it, System::Ours | System::TransformersBf16))
        .collect();
    let mut head = vec![String::new(), "unit".to_owned()];
    head.extend(systems.iter().map(|it| it.name().to_owned()));
    head.extend(peers.iter().map(|it| format!("against {} (goal)", it.name())));
    head.push("limit".to_owned());
    let mut rows = vec![head];
    for measure in Measure::ALL {
        let mut row = vec![measure.title().to_owned(), measure.unit().to_owned()];
        let number = |it: Option<f64>| it.map_or_else(String::new, readable);
        row.extend(systems.iter().map(|&it| number(results.value(measure, it))));
        row.extend(peers.iter().map(|&peer| ratio(results, measure, peer)));
        row.push(number(results.limit(measure)));
        rows.push(row);
    }
    markdown(&rows)
}

fn ratio(results: &Results, measure: Measure, peer: System) -> String {
    let Some(ratio) = results.ratio(measure, peer) else { return String::new() };
    let ratio = format!("{} ×", readable(ratio));
    match measure.goal_against(peer) {
        Some(goal) => format!("{ratio} ({goal})"),
        None => ratio,
    }
}

/// Three digits, more only where they are whole.
pub(super) fn readable(value: f64) -> String {
    let decimals = match value {
        100.0.. => 0,
        10.0.. => 1,
        _ => 2,
    };
    format!("{value:.decimals$}")
}

/// A table whose columns line up in the source, too, so that it can be read in a terminal.
pub(super) fn markdown(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            // Words to the left, numbers to the right.
            let padded =
                if column < 2 { format!("{cell:<width$}") } else { format!("{cell:>width$}") };
            text.push_str(&format!("| {padded} "));
        }
        text.push_str("|\n");
        if index == 0 {
            for (column, width) in widths.iter().enumerate() {
                let dashes = "-".repeat(*width);
                text.push_str(&if column < 2 {
                    format!("| {dashes} ")
                } else {
                    format!("| {dashes}:")
                });
            }
            text.push_str("|\n");
        }
    }
    text
}

/// What begins the part of docs/benchmarks.md that other commands' figures are put into.
const BY_HAND: &str = "\n## Measured one by one\n";

/// That part of a page, which stays as it is.
pub(super) fn by_hand(page: &str) -> String {
    page.find(BY_HAND).map_or_else(String::new, |at| page[at..].to_owned())
}

/// docs/benchmarks.md, up to the figures of other commands.
pub(super) fn page(results: &Results, bench: &Bench, machine: &Machine) -> String {
    let table = table(results, bench.systems());
    let versions: Vec<String> =
        bench.versions().iter().map(|(name, version)| format!("{name} {version}")).collect();
    let mut notes: String = results.notes().iter().map(|it| format!("{it}\n")).collect();
    if notes.is_empty() {
        notes.push_str("In fp32 all systems chose the same tokens.\n");
    }
    if let Some(gain) = results.lookup_gain() {
        notes.push_str(&format!(
            "\nOn repetitive text prompt lookup is {} times as fast as plain decoding (goal: 1.5).\n",
            readable(gain)
        ));
    }
    let (rounds, new_tokens, prefill) = (FULL.rounds, FULL.new_tokens, FULL.prefill);
    let (bundled_tokens, draws) = (FULL.bundled_tokens, FULL.draws);
    format!(
        "# Benchmarks\n\n\
         Written by `cargo xtask bench --peers`, which measures all systems in turn in one run.\n\n\
         - machine: {machine}; {load} before the run\n\
         - versions: {versions}\n\
         - {THREADS} threads for models, one for draws; fp32 unless the column says otherwise\n\n\
         ![The measurements as bars](benchmarks.svg)\n\n\
         {table}\n\
         {notes}\n\
         ![What a token costs as the text grows](growth.svg)\n\n\
         \"Against\" says how many times as fast we are; a goal stands behind it in brackets, and a limit on our\n\
         own number in the last column. Numbers are medians over {rounds} rounds.\n\n\
         ## What is measured\n\n\
         Every system gets the same model folder, the same prompt as token ids and a process of its own, and is\n\
         used through its own generation loop: mlx-genkit's `stream`, transformers' `generate` with a streamer,\n\
         mlx-lm's `generate_step`. Loading and a first short request are not counted.\n\n\
         - **0.6B shape**: the shape of Qwen3-0.6B with random weights, bf16 on disk. {new_tokens} tokens after a\n  \
           prompt of 32, greedy, counted from the first new token to the last ({SLOW_TOKENS} tokens and one round\n  \
           for mlx-lm). Prefill is the time from the request to the first new token after {prefill}.\n\
         - **bundled model**: {bundled_tokens} tokens after a prompt of 32, greedy; the end token is taken away.\n\
         - **4 beams, batch of 8**: whole requests of {bundled_tokens} new tokens per prompt, each prompt of 32; tokens\n  \
           that are returned, over the time of the request. {new_tokens} new tokens at the 0.6B shape.\n\
         - **repetitive text**: a story of 96 tokens told three times, continued by {bundled_tokens}; with prompt lookup, at\n  \
           most 10 tokens are guessed at a time.\n\
         - **growth**: one text of 8,192 tokens by the bundled model, and what a token cost on the way. The memory is\n  \
           what MLX holds, the model included.\n\
         - **first token**: from the start of a process, with the interpreter, the libraries, the tokenizer and\n  \
           the model to be loaded, to its end after one token.\n\
         - **peak memory**: the largest resident size of the process that decodes the 0.6B shape. The limit is\n  \
           1.15 times the weights as we hold them, and 150 MB.\n\
         - **draws**: a token from 151,936 scores with 512 tokens of history, {draws} times. Repetition penalty\n  \
           1.1, no n-gram of 3 twice, temperature 0.7, top-k 50, top-p 0.9; then temperature and top-p alone.\n  \
           mlx-lm has no n-gram ban, so it does without. The fast generator draws, and torch's where named.\n\
         - **mask**: what a schema of three fields forbids among 151,936 tokens, on average over a document.\n\n\
         mlx-lm runs on the published CPU build of MLX. As it comes it computes in the checkpoint's bf16, and the goals\n\
         for the large model are against that; in fp32 it is asked to convert the weights. On Linux we bring OpenBLAS and\n\
         operations of our own ([native-mlx.md](native-mlx.md)), and that is most of the difference. We compute in fp32\n\
         throughout, with weights that stay bf16 in memory; the greedy tokens are those of transformers in fp32.\n",
        machine = machine.describe(),
        load = machine.load(),
        versions = versions.join(", "),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_table_holds_the_numbers_the_ratio_and_the_goal() {
        let mut results = Results::default();
        results.add(Measure::Decode, System::Ours, &json!(9.0)).unwrap();
        results.add(Measure::Decode, System::Transformers, &json!(6.0)).unwrap();
        let table = table(&results, &[System::Ours, System::Transformers]);
        let line = table.lines().nth(2).unwrap();
        assert!(line.contains("9.00") && line.contains("1.50 × (1.3)"), "{line}");
        let widths: Vec<usize> = table.lines().map(|line| line.chars().count()).collect();
        assert!(widths.iter().all(|it| *it == widths[0]), "{table}");
    }

    #[test]
    fn figures_of_other_commands_stay() {
        assert_eq!(by_hand("# Benchmarks\n"), "");
        assert_eq!(
            by_hand("a\n\n## Measured one by one\n\nb\n"),
            "\n## Measured one by one\n\nb\n"
        );
    }

    #[test]
    fn numbers_keep_three_digits() {
        assert_eq!([0.5234, 9.21, 13.64, 133.4].map(readable), ["0.52", "9.21", "13.6", "133"]);
    }
}
