//! The processors against what transformers recorded.

#[test]
fn equals_transformers() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/processors");
    let report = mlxgk_parity::processors::check(folder.as_ref()).unwrap();
    assert!(report.passed(), "{report}");
}
