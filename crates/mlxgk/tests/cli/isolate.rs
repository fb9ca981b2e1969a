//! `mlxgk isolate`, and the commands of the guide to caches that run it.

use std::{fs, path::Path};

use serde_json::Value;

use crate::shared::{mlxgk, write};

fn example(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/isolation").join(name)
}

#[test]
fn an_experiment_is_run_and_reported() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (json, html) = (path("report.json"), path("report.html"));
    let file = example("03_pension.json");
    let file = file.to_str().unwrap();
    let args = ["isolate", file, "--conditions", "sequential,semantic,reprefill", "-n", "8"];
    let more = ["--seed", "7", "--json", &json, "--html", &html, "--format", "json"];
    let run = mlxgk(&[&args[..], &more].concat());
    assert_eq!((run.status, run.stderr.as_str()), (Some(0), ""));
    let document: Value = serde_json::from_str(&run.stdout).unwrap();
    let written: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    assert_eq!(document, written);
    let results = &document["examples"][0]["results"];
    let outputs = |condition: &str| results[condition]["outputs"].clone();
    assert_eq!(outputs("semantic"), outputs("reprefill"));
    assert_eq!(outputs("semantic").as_object().unwrap().len(), 3);
    assert_eq!(document["summary"]["semantic"]["attention_on_other_clusters"], 0.0);
    let other = &document["summary"]["sequential"]["attention_on_other_clusters"];
    assert!(other.as_f64().unwrap() > 0.01, "{other}");
    let sizes = |condition: &str| results[condition]["cache_sizes"].as_object().unwrap().clone();
    assert_eq!(sizes("sequential").keys().collect::<Vec<_>>(), ["unified"]);
    assert_eq!(sizes("semantic").len(), 3);
    assert!(fs::read_to_string(&html).unwrap().contains("<svg"));
    // The same command, the same tokens; another seed, others.
    let again = mlxgk(&[&args[..], &more].concat());
    let again: Value = serde_json::from_str(&again.stdout).unwrap();
    assert_eq!(again["examples"][0]["results"]["semantic"]["outputs"], outputs("semantic"));
}

#[test]
fn examples_that_cannot_be_run_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let made = |name: &str, clusters: &str, turns: &str| {
        let text = format!(
            "{{\"id\": \"x\", \"semantic_clusters\": {{{clusters}}}, \"turns\": [{turns}]}}"
        );
        write(folder.path(), name, text)
    };
    let (one, turn) =
        ("\"a\": {\"terminology\": [\"t\"]}", "{\"turn_id\": 1, \"content\": \"hi\"}");
    let cycle = "\"a\": {\"inputs\": [\"b\"]}, \"b\": {\"inputs\": [\"a\"]}";
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).unwrap();
    for (path, more, expected) in [
        (made("cycle.json", cycle, turn), "", "in a cycle: b → a → b"),
        (made("none.json", one, ""), "", "none.json: `turns` is empty"),
        (made("label.json", one, turn), "", "turn 1 is of no cluster"),
        (made("label.json", one, turn), "--conditions=isolated", "unknown condition `isolated`"),
        (made("long.json", one, turn), "--max-tokens=1025", "than the 1024 that"),
        (made("long.json", one, turn), "--max-tokens=18446744073709551615", "than the 1024 that"),
        (
            made("who.json", one, "{\"turn_id\": 1, \"cluster\": 4, \"content\": \"hi\"}"),
            "",
            "turn 1 is of unknown cluster `cluster_4`; expected one of a",
        ),
        (made("text.json", one, "{\"turn_id\": 1}"), "", "turn 1 has no text"),
        (write(folder.path(), "no.json", "[]"), "", "no.json: not an example"),
        ("./nowhere.json".to_owned(), "", "cannot read ./nowhere.json"),
        (empty.to_str().unwrap().to_owned(), "", "holds no file that ends in .json"),
    ] {
        let labels = if expected.contains("than the") { "keyword" } else { "given" };
        let mut args = vec!["isolate", path.as_str(), "--labels", labels];
        args.extend([more].into_iter().filter(|it| !it.is_empty()));
        let run = mlxgk(&args);
        assert_eq!((run.status, run.stdout.as_str()), (Some(2), ""), "{expected}: {}", run.stderr);
        assert!(run.stderr.contains(expected), "{expected}: {}", run.stderr);
    }
}

/// The commands of the guide that run the experiment, on two of the examples that they name.
#[test]
fn the_guide_s_experiments_run() {
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/caches.md");
    let guide = fs::read_to_string(guide).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let examples = folder.path().join("isolation");
    fs::create_dir(&examples).unwrap();
    for name in ["01_web_shop.json", "18_film.json"] {
        fs::copy(example(name), examples.join(name)).unwrap();
    }
    let mut commands = 0;
    for line in guide.lines().filter(|it| it.starts_with("mlxgk isolate ")) {
        let within = |word: &str| match word {
            "fixtures/isolation" => examples.to_str().unwrap().to_owned(),
            _ if word.ends_with(".json") && word.starts_with("fixtures/") => {
                example(word.rsplit('/').next().unwrap()).to_str().unwrap().to_owned()
            }
            _ if word.ends_with(".json") || word.ends_with(".html") => {
                folder.path().join(word).to_str().unwrap().to_owned()
            }
            _ => word.to_owned(),
        };
        let args: Vec<String> = line.split_whitespace().skip(1).map(within).collect();
        let mut args: Vec<&str> = args.iter().map(String::as_str).collect();
        args.extend(["-n", "6"]);
        let run = mlxgk(&args);
        assert_eq!(run.status, Some(0), "{line}: {}", run.stderr);
        commands += 1;
    }
    assert!(commands >= 2, "{commands} commands");
}
