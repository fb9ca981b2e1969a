//! From process start to the first token of the bundled model, and on to the end of the process.

use std::process::{Command, Stdio};
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};

fn first_token(c: &mut Criterion) {
    let mut group = c.benchmark_group("process");
    group.sample_size(20).measurement_time(Duration::from_secs(4));
    group.bench_function("first token", |b| {
        b.iter(|| {
            let status = Command::new(env!("CARGO_BIN_EXE_mlxgk"))
                .args(["generate", "--prompt", "Tell me a story.", "--max-tokens", "1"])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            assert!(status.is_ok_and(|it| it.success()));
        });
    });
}

criterion_group!(benches, first_token);
criterion_main!(benches);
