//! The recorded goldens; `cargo xtask parity` runs the same check.

#[test]
fn templates_tokenizers_and_ids_match_transformers() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/templates");
    let report = mlxgk_parity::templates::check(folder.as_ref()).unwrap();
    assert!(report.passed(), "{report}");
}
