//! What the numbers were measured on.

use std::fs;
use std::process::Command;

use crate::failure::{Context, Result};
use crate::process;

/// The machine, and how busy it was before anything was measured.
#[derive(Debug)]
pub(super) struct Machine {
    processor: String,
    cores: usize,
    gigabytes: f64,
    /// Processes that ran or waited to, on average over the last minute.
    load: f64,
}

impl Machine {
    pub(super) fn look() -> Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let (processor, bytes, load) = if cfg!(target_os = "macos") { apple()? } else { linux()? };
        Ok(Self { processor, cores, gigabytes: bytes / 1e9, load })
    }

    /// Whether something else takes a good part of a core.
    pub(super) fn is_busy(&self) -> bool {
        self.load > 0.5
    }

    pub(super) fn load(&self) -> String {
        format!("load average {:.1}", self.load)
    }

    pub(super) fn describe(&self) -> String {
        let Self { processor, cores, gigabytes, .. } = self;
        let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
        format!("{processor}, {cores} cores, {gigabytes:.0} GB, {os} on {arch}")
    }
}

fn linux() -> Result<(String, f64, f64)> {
    let read = |path: &str| fs::read_to_string(path).context(|| format!("cannot read {path}"));
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let processor = field(&read("/proc/cpuinfo")?, "model name");
    let kibibytes = field(&read("/proc/meminfo")?, "MemTotal")
        .and_then(|it| it.split(' ').next()?.parse::<f64>().ok());
    Ok((
        processor.unwrap_or_else(|| "unnamed processor".to_owned()),
        kibibytes.unwrap_or(0.0) * 1024.0,
        first_number(&read("/proc/loadavg")?),
    ))
}

fn apple() -> Result<(String, f64, f64)> {
    let sysctl = |name: &str| process::capture(Command::new("sysctl").args(["-n", name]));
    Ok((
        sysctl("machdep.cpu.brand_string")?.trim().to_owned(),
        first_number(&sysctl("hw.memsize")?),
        first_number(&sysctl("vm.loadavg")?),
    ))
}

fn first_number(text: &str) -> f64 {
    text.split([' ', '{', '}', '\n']).find_map(|it| it.parse().ok()).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_systems_ways_to_write_a_load_are_read() {
        assert_eq!(first_number("0.52 0.58 0.59 1/389 12\n"), 0.52);
        assert_eq!(first_number("{ 1.70 1.80 1.90 }\n"), 1.7);
    }

    #[test]
    fn this_machine_has_a_core_and_memory() {
        let machine = Machine::look().unwrap();
        assert!(machine.cores > 0 && machine.gigabytes > 0.1, "{machine:?}");
    }
}
