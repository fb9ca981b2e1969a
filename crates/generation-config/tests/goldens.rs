//! The recorded goldens: see `mlxgk_parity::config`.

use std::path::Path;

#[test]
fn goldens() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/config");
    let report = mlxgk_parity::config::check(&folder).unwrap();
    assert!(report.passed(), "{report}");
}
