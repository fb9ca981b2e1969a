//! The peak of memory is counted in bytes. The one test of its file, so that it has a process of its own:
//! the peak is the whole process's, whatever else runs in it.

use mlxgk_bench::peak_bytes;

#[test]
fn memory_that_is_touched_counts_in_bytes() {
    const BLOCK: u64 = 256 << 20;
    let before = peak_bytes().unwrap();
    let block = vec![1_u8; BLOCK as usize];
    assert!(std::hint::black_box(&block).iter().all(|&it| it == 1));
    let grown = peak_bytes().unwrap() - before;
    // Another unit would be off by a factor of 1,024.
    assert!((BLOCK / 4..4 * BLOCK).contains(&grown), "{grown}");
}
