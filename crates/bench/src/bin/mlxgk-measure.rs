//! `mlxgk-measure TASK`: does one [`Task`], given as JSON, and prints what was measured as JSON.

// A command line speaks on stdout.
#![allow(clippy::print_stdout, reason = "it prints what it measured")]

use mlxgk_bench::{Result, Task};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(task), None) = (arguments.next(), arguments.next()) else {
        return Err(
            "usage: mlxgk-measure TASK, a JSON object (see the README of mlxgk-bench)".into()
        );
    };
    println!("{}", serde_json::from_str::<Task>(&task)?.run()?);
    Ok(())
}
