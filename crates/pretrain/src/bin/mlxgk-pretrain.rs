//! `mlxgk-pretrain PLAN`: trains the model of a [`Plan`], given as JSON.

// A command line speaks on stdout.
#![allow(clippy::print_stdout, reason = "it says how far it is")]

use mlxgk_pretrain::{Plan, Result};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(plan), None) = (arguments.next(), arguments.next()) else {
        return Err(
            "usage: mlxgk-pretrain PLAN, a JSON object (see the README of mlxgk-pretrain)".into()
        );
    };
    let plan: Plan = serde_json::from_str(&plan)?;
    mlxgk_pretrain::run(&plan, |line| println!("{line}"))
}
