//! `docs/parity.md` promises what is checked: its tolerances are the ones the areas compare by.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use std::path::Path;

use mlxgk_parity::AREAS;

/// A row of a table that names areas.
struct Row {
    text: String,
    tolerances: Vec<f64>,
    areas: Vec<String>,
}

fn rows() -> Vec<Row> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/parity.md");
    let ledger = std::fs::read_to_string(path).unwrap();
    let row = |line: &str| {
        let columns: Vec<&str> = line.strip_prefix('|')?.split('|').map(str::trim).collect();
        let [_, tolerance, checked, ..] = columns[..] else { return None };
        let numbers = tolerance.split([' ', ',']).filter(|it| it.contains("e-"));
        let names = checked.split('`').skip(1).step_by(2);
        let names = names.map(|it| it.split('/').next().unwrap().to_owned());
        Some(Row {
            text: line.to_owned(),
            tolerances: numbers.filter_map(|it| it.parse().ok()).collect(),
            areas: names.filter(|it| AREAS.iter().any(|area| area.name == it)).collect(),
        })
    };
    ledger.lines().filter_map(row).filter(|it| !it.areas.is_empty()).collect()
}

#[test]
fn every_tolerance_in_the_ledger_is_the_one_that_is_checked() {
    for Row { text, tolerances, areas } in rows() {
        let checked: Vec<f64> = AREAS
            .iter()
            .filter(|it| areas.iter().any(|name| name == it.name))
            .flat_map(|it| it.tolerances.iter().copied())
            .collect();
        for tolerance in tolerances {
            assert!(checked.contains(&tolerance), "{text}\nchecked are {checked:?}");
        }
    }
}

#[test]
fn every_area_and_every_tolerance_is_in_the_ledger() {
    let rows = rows();
    for area in AREAS {
        let of = || rows.iter().filter(|it| it.areas.iter().any(|name| name == area.name));
        assert!(of().next().is_some(), "{} is not in docs/parity.md", area.name);
        for tolerance in area.tolerances {
            assert!(of().any(|it| it.tolerances.contains(tolerance)), "{}: {tolerance}", area.name);
        }
    }
}
