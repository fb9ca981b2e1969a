//! Rows that run a part at a time: each is given what it would be given beside all the others.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use std::{cell::RefCell, collections::BTreeMap};

use mlxgk_decoding_strategies::{
    Error, ErrorKind, InParts, LeftPadded, Limits, Result, RowGroup, RowId, RowOutcome, RowOutput,
    SampleLoop, TokenLoop,
};
use mlxgk_logits_processors::{Context, LogitsProcessor, ProcessorList};

mod table;

use table::{Table, VOCAB};

/// Prefers what depends on the row's index, its padding and its length, as processors may.
#[derive(Debug)]
struct Particular;

impl LogitsProcessor for Particular {
    fn name(&self) -> &'static str {
        "Particular"
    }

    fn process(
        &self,
        context: &Context<'_>,
        scores: &mut [f32],
    ) -> mlxgk_logits_processors::Result<()> {
        let at = (context.row * 3 + context.padding + context.tokens.len()) % VOCAB;
        scores[at] += 1.25;
        Ok(())
    }
}

fn prompts() -> Vec<Vec<u32>> {
    (0..9_u32).map(|at| (0..1 + at % 4).map(|it| (it + 2 * at) % 11).collect()).collect()
}

fn group(guided: bool) -> RowGroup {
    RowGroup::greedy(Limits { max_new_tokens: 7, eos: vec![3, 8, 21] })
        .processors(ProcessorList::new(vec![Box::new(Particular)]))
        .guidance(guided.then_some(1.5))
}

/// A model that was fed these rows' prompts, and behind them what they are guided away from.
fn fed(rows: &[usize], guided: bool) -> Table {
    let texts = rows.iter().map(|&at| prompts()[at].clone());
    let other = rows.iter().map(|&at| vec![at as u32 * 2 + 1]).filter(|_| guided);
    Table::new(&texts.chain(other).collect::<Vec<_>>(), 1)
}

/// Runs a loop to its end: what each row was given on the way, and in the end.
fn run(mut it: impl TokenLoop) -> (BTreeMap<u64, Vec<u32>>, Vec<RowOutput>) {
    it.wait().unwrap();
    let mut given: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
    while let Some(events) = it.step() {
        for event in events.unwrap() {
            let RowOutcome::Token { token, .. } = event.outcome else { panic!("{event:?}") };
            given.entry(event.row.get()).or_default().push(token);
        }
    }
    (given, Box::new(it).finish().unwrap().rows)
}

#[test]
fn parts_come_to_what_the_whole_comes_to() {
    let batch = LeftPadded::new(&prompts(), 7).unwrap();
    for guided in [false, true] {
        let all: Vec<usize> = (0..9).collect();
        let whole = run(SampleLoop::new(fed(&all, guided), &batch, group(guided)));
        assert_eq!(whole.0.len(), 9);
        assert!(whole.1.iter().any(|it| it.tokens.len() < 7), "no row ends before the others");
        for most in [1, 2, 4, 8, 9, 20] {
            let begun = RefCell::new(Vec::new());
            let parts = InParts::new(&batch, group(guided), most, |rows| {
                begun.borrow_mut().push(rows.to_vec());
                Ok(fed(rows, guided))
            });
            assert_eq!(run(parts), whole, "{most} at once");
            let expected: Vec<&[usize]> = all.chunks(most).collect();
            assert_eq!(begun.into_inner(), expected);
        }
    }
}

/// A row that leaves before its part begins is never fed.
#[test]
fn a_row_that_left_is_not_fed() {
    let batch = LeftPadded::new(&prompts(), 7).unwrap();
    let begun = RefCell::new(Vec::new());
    let mut parts = InParts::new(&batch, group(false), 4, |rows| {
        begun.borrow_mut().push(rows.to_vec());
        Ok(fed(rows, false))
    });
    parts.step().unwrap().unwrap();
    assert!(parts.leave(RowId::new(5)) && !parts.leave(RowId::new(5)));
    while let Some(events) = parts.step() {
        events.unwrap();
    }
    let rows = Box::new(parts).finish().unwrap().rows;
    assert!(rows[5].tokens.is_empty() && rows[5].finish_reason.is_none());
    assert!([0, 4, 8].iter().all(|&it| !rows[it].tokens.is_empty()));
    assert_eq!(begun.into_inner(), [vec![0, 1, 2, 3], vec![4, 6, 7, 8]]);
}

/// Where a part cannot be fed, all rows end with the error.
#[test]
fn a_part_that_fails_ends_all() {
    let batch = LeftPadded::new(&prompts(), 7).unwrap();
    let mut parts = InParts::new(&batch, group(false), 4, |rows| match rows[0] {
        0 => Ok(fed(rows, false)),
        _ => Err(Error::new(ErrorKind::Prompt, "no more")),
    });
    let error = std::iter::from_fn(|| parts.step()).find_map(Result::err).unwrap();
    assert_eq!(error.to_string(), "no more");
    assert!(parts.step().is_none());
}
