//! Where things lie in the checkout.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::failure::{Context, Failure, Result};
use crate::process;

/// The checkout's folder. Asked of the running cargo, since a checkout can be moved after this
/// program was compiled.
pub(crate) fn root() -> PathBuf {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest.parent().map_or_else(|| manifest.clone(), Path::to_path_buf)
}

/// What the chores make, apart from cargo's own folder so that `cargo clean` leaves it.
pub(crate) fn build() -> PathBuf {
    root().join("build")
}

/// Where cargo puts what it builds: cargo's to say, since configuration and environment can move it.
pub(crate) fn target() -> Result<PathBuf> {
    let folder = metadata()?["target_directory"].as_str().map(PathBuf::from);
    folder.ok_or_else(|| Failure::new("cargo does not say where it builds"))
}

/// The packages that have features, and these.
pub(crate) fn features() -> Result<Vec<(String, Vec<String>)>> {
    let metadata = metadata()?;
    let package = |it: &Value| {
        let features = it["features"].as_object()?;
        let features: Vec<String> = features.keys().cloned().collect();
        (!features.is_empty()).then_some((it["name"].as_str()?.to_owned(), features))
    };
    Ok(metadata["packages"].as_array().into_iter().flatten().filter_map(package).collect())
}

/// The packages that are published, as `cargo metadata` describes them, each behind those it depends
/// on.
pub(crate) fn published() -> Result<Vec<Value>> {
    let mut metadata = metadata()?;
    let packages = metadata["packages"].as_array_mut().map(std::mem::take).unwrap_or_default();
    // `publish = false` is an empty list of registries.
    let packages = packages.into_iter().filter(|it| it["publish"] != Value::Array(Vec::new()));
    Ok(in_order(packages.collect()))
}

/// Puts packages behind those among them that they depend on.
fn in_order(mut packages: Vec<Value>) -> Vec<Value> {
    let mut ordered: Vec<Value> = Vec::new();
    while !packages.is_empty() {
        let ready = packages.iter().position(|package| {
            let mut needed = package["dependencies"].as_array().into_iter().flatten();
            // What tests alone take by its path is left out of a published manifest.
            needed.all(|it| {
                it["kind"] == "dev" && it["req"] == "*"
                    || !packages.iter().any(|other| other["name"] == it["name"])
            })
        });
        // Cargo refuses circles, so there is always one.
        let Some(ready) = ready else { break };
        ordered.push(packages.remove(ready));
    }
    ordered.append(&mut packages);
    ordered
}

/// The packages that one is built of, itself included.
pub(crate) fn dependencies(name: &str, features: &[&str]) -> Result<Vec<String>> {
    let mut tree = process::cargo();
    tree.current_dir(root());
    tree.args(["tree", "--locked", "--edges", "normal", "--prefix", "none"]);
    tree.args(["--target", "x86_64-unknown-linux-gnu", "--package", name]);
    let listing = process::capture(tree.args(features))?;
    // `name v1.2.3 (where) (*)`.
    let mut packages: Vec<String> = listing
        .lines()
        .map(|it| it.split(' ').take(2).collect::<Vec<_>>().join(" "))
        .filter(|it| !it.is_empty())
        .collect();
    packages.sort();
    packages.dedup();
    Ok(packages)
}

fn metadata() -> Result<Value> {
    let metadata = process::capture(process::cargo().current_dir(root()).args([
        "metadata",
        "--format-version=1",
        "--no-deps",
        "--offline",
    ]))?;
    serde_json::from_str(&metadata).context(|| "cannot read the output of `cargo metadata`")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn packages_stand_behind_what_they_depend_on() {
        let package = |name: &str, needs: &[&str], tests: &[&str]| {
            let needs = needs.iter().map(|it| json!({"name": it, "kind": null}));
            let tests = tests.iter().map(|it| json!({"name": it, "kind": "dev", "req": "*"}));
            json!({"name": name, "dependencies": needs.chain(tests).collect::<Vec<_>>()})
        };
        let packages = vec![
            package("facade", &["loops", "serde"], &[]),
            package("loops", &["cache"], &["facade"]),
            package("cache", &[], &["loops"]),
        ];
        let names: Vec<Value> = in_order(packages).iter().map(|it| it["name"].clone()).collect();
        assert_eq!(names, ["cache", "loops", "facade"]);
    }
}
