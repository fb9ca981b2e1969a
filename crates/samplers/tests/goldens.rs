//! The recorded goldens; `cargo xtask parity` runs the same check.

#[test]
fn samplers_match_transformers_and_torch() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/samplers");
    let report = mlxgk_parity::samplers::check(folder.as_ref()).unwrap();
    assert!(report.passed(), "{report}");
}
