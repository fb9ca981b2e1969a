//! `mlxgk completions` and `mlxgk man`: what shells and `man` know of the command line.

use std::{fs, path::PathBuf};

use clap::{Args, Command};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::{
    failure::{Failure, Result},
    files, terminal,
};

/// The flags of `completions`.
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL", value_enum)]
    shell: Shell,
}

/// The flags of `man`.
#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// The folder to write the pages to, one per subcommand; it is made where it is not there
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// `mlxgk completions`.
pub(crate) fn completions(args: &CompletionsArgs, mut command: Command) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "mlxgk", &mut script);
    Ok(terminal::piece(&String::from_utf8_lossy(&script))?)
}

/// `mlxgk man`.
pub(crate) fn man(args: &ManArgs, mut command: Command) -> Result<()> {
    fs::create_dir_all(&args.out).map_err(|e| {
        Failure::other(format_args!("cannot make the folder {}: {e}", args.out.display()))
    })?;
    command.build();
    write_pages(args, &command, "mlxgk")
}

/// Writes the page of a command and those of its subcommands.
fn write_pages(args: &ManArgs, command: &Command, name: &str) -> Result<()> {
    let mut page = Vec::new();
    // A page is found under its name; clap's holds a space where that has a dash.
    let titled = command.clone().name(name.to_owned()).display_name(name.to_owned());
    Man::new(titled).render(&mut page)?;
    files::write_text(&args.out.join(format!("{name}.1")), &String::from_utf8_lossy(&page))?;
    for it in command.get_subcommands().filter(|it| it.get_name() != "help") {
        write_pages(args, it, &format!("{name}-{}", it.get_name()))?;
    }
    Ok(())
}
