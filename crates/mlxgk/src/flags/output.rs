//! What is printed, and which random numbers are drawn.

use clap::{Args, ValueEnum};
use mlx_genkit::Seed;

/// What is printed.
#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct OutputArgs {
    /// What to print
    #[arg(long, value_enum, default_value = "text")]
    pub(crate) format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Text,
    /// One JSON document for programs
    Json,
}

/// What is printed where tokens may appear as they are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StreamFormat {
    /// For people
    Text,
    /// One JSON document for programs
    Json,
    /// A JSON object per token as it is made, then the document, each on a line
    Jsonl,
}

/// Which random numbers are drawn.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SeedArgs {
    /// Seed of the random numbers; a new one for every run by default
    #[arg(short, long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Random generator
    #[arg(long, value_enum, default_value = "fast")]
    pub(crate) rng: RngArg,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RngArg {
    /// torch's, for the tokens that HF gives after torch.manual_seed(N) on the CPU
    Torch,
    /// Faster, with a stream per row
    Fast,
}

impl SeedArgs {
    /// The seed that was given, or a random one short enough to be typed.
    pub(crate) fn seed(&self) -> Seed {
        let seed = self.seed.unwrap_or_else(|| number(Seed::random()) >> 32);
        match self.rng {
            RngArg::Torch => Seed::Torch(seed),
            RngArg::Fast => Seed::Fast(seed),
        }
    }
}

/// The number after `--seed` that gives this seed.
pub(crate) fn number(seed: Seed) -> u64 {
    match seed {
        Seed::Torch(seed) | Seed::Fast(seed) => seed,
    }
}
