//! How fast memory can be read: what bounds decoding, which reads every weight once per token.

use std::thread;
use std::time::Instant;

/// fp32 numbers that no cache holds: 1 GB.
const NUMBERS: usize = 250_000_000;

/// Sums side by side, so that additions do not wait for one another.
const LANES: usize = 64;

/// Bytes per second that `threads` threads read together, each its own part: the best of five times.
pub fn memory_bandwidth(threads: usize) -> f64 {
    let numbers = vec![1.0_f32; NUMBERS];
    let part = NUMBERS.div_ceil(threads.max(1));
    let read = || {
        let begun = Instant::now();
        thread::scope(|scope| {
            for part in numbers.chunks(part) {
                scope.spawn(move || std::hint::black_box(sum(part)));
            }
        });
        (4 * NUMBERS) as f64 / begun.elapsed().as_secs_f64()
    };
    (0..5).map(|_| read()).fold(0.0, f64::max)
}

fn sum(numbers: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    for chunk in numbers.as_chunks::<LANES>().0 {
        for (lane, number) in lanes.iter_mut().zip(chunk) {
            *lane += number;
        }
    }
    lanes.iter().sum()
}
